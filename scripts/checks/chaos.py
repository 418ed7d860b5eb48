"""Kills a training run again and again, and compares what it ends with to an undisturbed run: bit for bit.

    python -m scripts.checks.chaos [--kills=25] [--seed=0] [--runs=plain,rmi,mutual] [--steps=400] [--output=FILE.json]

Every run is the real command on rendered scenes, STEPS steps, in a process of its own, killed KILLS times. Each kill
(SIGKILL) waits for a moment of its kind, in turn: start-up, data preparation, a step, a checkpoint being written, an
evaluation; then for a random while. What the files tell afterwards is where it fell. Status 1 where anything differs:
parameters, optimizer states, BatchNorm statistics, logged losses, scores. On one device; the seed draws the moments. On
a GPU, XLA is told to leave out operations whose result depends on timing.
"""

import argparse
import collections
import dataclasses
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the runs need the GPU's memory

import jax
import numpy as np

from jaxseg.config import load_config
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.labels import LABELS
from jaxseg.training import checkpoint
from jaxseg.training.peers import create_peers
from scripts.entry import device_name, result_options_of, run, write_result

VARIANTS = {"plain": "", "rmi": ":rmi", "mutual": ":mutual"}
FIELDS = {
    "data.scenes": 24,  # 20 to train on: 5 steps an epoch
    "data.size_px": 36,
    "data.crop_px": 32,
    "data.threads": 2,
    "model.features": 4,
    "train.log_every_steps": 1,
    "eval.every_epochs": 2,
    "eval.batch_size": 4,
    "checkpoint.every_steps": 3,
}
STEPS_OF_EPOCH = 5
STEPS_OF_EVALUATION = 10
OF_MUTUAL = {"peers.teacher.model.stem_features": 4}
# Seconds until the kill, at the most, after a moment of the kind was seen: about as long as such a moment lasts; many
# steps, so that the kills spread over the run.
LASTS_S = {"start-up": 5.0, "preparation": 1.0, "step": 2.0, "checkpoint": 0.03, "evaluation": 0.01}
POLL_S = 0.002


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of run in a folder of its own."""

    name: str
    folder: Path
    steps: int

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def start(self) -> subprocess.Popen:
        fields = FIELDS | {"train.epochs": self.steps // STEPS_OF_EPOCH, "data.dir": self.folder / "data"}
        fields |= OF_MUTUAL if self.name == "mutual" else {}
        words = [sys.executable, "-m", "jaxseg.main", f"--config=configs/demo.py{VARIANTS[self.name]}"]
        words += [f"--workdir={self.workdir}", *(f"--config.{path}={value}" for path, value in fields.items())]
        compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(self.folder.parent / "compiled"))
        flags = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true", "JAX_COMPILATION_CACHE_DIR": compiled}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | flags)

    def is_prepared(self) -> bool:
        return any(self.folder.glob("data/prepared/segmentation/*/*/prepared.json"))

    def logged(self, name: str) -> list[str]:
        """Whole lines of a log of the run."""
        path = self.workdir / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def traces(self) -> dict[str, set]:
        """What the files tell of each kind of moment; a new trace is such a moment."""
        steps = len(self.logged("train.jsonl"))
        scored = len(self.logged("eval.jsonl"))
        unscored = steps > 0 and steps % STEPS_OF_EVALUATION == 0 and scored < steps // STEPS_OF_EVALUATION
        return {
            "start-up": set(),
            "preparation": set() if self.is_prepared() else stamps([self.folder / "data"]),
            "step": set(range(1, steps + 1)),  # beyond those that were logged before
            "checkpoint": stamps(self.workdir.glob("checkpoints/*tmp*")),
            "evaluation": stamps([self.workdir / "train.jsonl"]) if unscored else set(),  # logged, not scored yet
        }


def stamps(paths) -> set:
    """(name, time of change), of what is still there when it is looked at."""
    found = set()
    for path in paths:
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def kill_in(case: Case, kind: str, delay_s: float) -> dict:
    """One start and its kill. Raises RuntimeError where the run ended before."""
    if kind == "preparation":
        shutil.rmtree(case.folder / "data", ignore_errors=True)  # to be prepared again, to the same records
    before = case.traces()
    child = case.start()
    while kind != "start-up" and child.poll() is None and not case.traces()[kind] - before[kind]:
        time.sleep(POLL_S)
    end = time.monotonic() + delay_s
    while child.poll() is None and time.monotonic() < end:
        time.sleep(POLL_S)
    over = child.poll() is not None
    child.kill()
    child.wait()
    if over:
        raise RuntimeError(
            f"{case.name}: ended, status {child.returncode}, before its kill; use more --steps\n{tail(case)}"
        )
    step = len(case.logged("train.jsonl"))
    fell = where(before, case.traces())
    print(f"{case.name}: killed {delay_s:.3f} s into {kind}, step {step}; it was in {fell}", flush=True)
    return {"waited_for": kind, "after_s": round(delay_s, 3), "fell_in": fell, "logged_steps": step}


def where(before: dict[str, set], after: dict[str, set]) -> str:
    """The moment that a run was killed in, by the traces that it added."""
    new = (kind for kind in ("preparation", "checkpoint", "evaluation", "step") if after[kind] - before[kind])
    return next(new, "start-up")


def tail(case: Case) -> str:
    return "\n".join((case.folder / "log").read_text(errors="replace").splitlines()[-5:])


def finish(case: Case) -> None:
    """Lets the run end. Raises RuntimeError where it does not end well."""
    if status := case.start().wait():
        raise RuntimeError(f"{case.name}: exit status {status}\n{tail(case)}")


def leaves(case: Case) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint, by path."""
    config = load_config(case.workdir)
    with checkpoint.open_manager(case.workdir, config.checkpoint, read_only=True) as manager:
        num_classes = LABELS[config.data.name].num_classes
        shapes = jax.eval_shape(lambda: create_peers(config, num_classes=num_classes, steps=1)[0])
        peers = checkpoint.restore(manager, checkpoint.find_step(manager, "last"), shapes)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(peers)}


def differences(one: Case, other: Case) -> list[str]:
    """What is not the same in two runs, by name."""
    found = [name for name in ("train.jsonl", "eval.jsonl") if one.logged(name) != other.logged(name)]
    ours, theirs = leaves(one), leaves(other)
    found += [path for path in ours | theirs if not np.array_equal(ours.get(path), theirs.get(path))]
    scores = [read_json(case.workdir / "results.json")["peers"] for case in (one, other)]
    return found + (["results.json"] if scores[0] != scores[1] else [])


def compare(name: str, folder: Path, *, steps: int, kinds: list[str], rng: random.Random) -> dict:
    """One kind of run, disturbed and not."""
    whole, disturbed = (Case(name, folder / f"{name}-{how}", steps) for how in ("whole", "disturbed"))
    for case in (whole, disturbed):
        case.folder.mkdir(parents=True)
    finish(whole)
    kills = [kill_in(disturbed, kind, rng.uniform(0, LASTS_S[kind])) for kind in kinds]
    finish(disturbed)
    found = differences(whole, disturbed)
    verdict = f"differs in {', '.join(found[:5])}" if found else "equal bit for bit"
    counts = collections.Counter(kill["fell_in"] for kill in kills)
    summary = ", ".join(f"{count} in {kind}" for kind, count in counts.items())
    print(f"{name}: {len(kills)} kills ({summary}): {verdict}", flush=True)
    sizes = {"steps": len(whole.logged("train.jsonl")), "arrays": len(leaves(whole))}
    return {"run": name, **sizes, "fell_in": counts, "differs": found, "kills": kills}


def main(options: argparse.Namespace) -> int:
    names = options.runs.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(f"--runs={options.runs}: {', '.join(unknown)} unknown; there are {', '.join(VARIANTS)}.")
    rng = random.Random(options.seed)
    kinds = list(itertools.islice(itertools.cycle(LASTS_S), options.kills))
    print(f"seed {options.seed}, on {device_name()}")
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(name, Path(folder), steps=options.steps, kinds=kinds, rng=rng) for name in names]
    write_result(options.output, {"check": "chaos", "seed": options.seed, "steps": options.steps, "results": results})
    return 1 if any(result["differs"] for result in results) else 0


if __name__ == "__main__":
    parser = result_options_of(__doc__, kills=25, seed=0, steps=400)
    parser.add_argument("--runs", default=",".join(VARIANTS))
    run(main, parser)
