"""Kills a training run again and again, and compares what it ends with to an undisturbed run: bit for bit.

    python -m scripts.chaos [--kills=25] [--seed=0] [--runs=plain,rmi,mutual] [--output=FILE.json]

Every run is the real command on rendered scenes, in a process of its own. Each kill (SIGKILL) waits for a moment of its
kind, in turn: start-up, data preparation, a step, a checkpoint being written, an evaluation; then for a random while. A
kind that does not come before the run ends is told as such. Status 1 where anything differs: parameters, optimiser
states, BatchNorm statistics, logged losses, scores. On one device; the seed draws the moments.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from jaxseg import checkpoint
from jaxseg.config import load_config
from jaxseg.labels import LABELS
from jaxseg.peers import create_peers
from jaxseg.results import commit, write_json

VARIANTS = {"plain": "", "rmi": ":rmi", "mutual": ":mutual"}
FIELDS = {
    "data.scenes": 24,
    "data.size_px": 36,
    "data.crop_px": 32,
    "data.threads": 2,
    "model.features": 4,
    "train.epochs": 20,
    "train.log_every_steps": 1,
    "eval.every_epochs": 2,
    "eval.batch_size": 4,
    "checkpoint.every_steps": 3,
}
STEPS_OF_EVALUATION = 10  # 2 epochs of 20 images in batches of 4
OF_MUTUAL = {"peers.teacher.model.stem_features": 4}
AFTER_S = {"start-up": 5.0, "preparation": 1.0, "step": 0.3, "checkpoint": 0.05, "evaluation": 0.1}  # at the most
POLL_S = 0.002


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of run in a folder of its own."""

    name: str
    folder: Path

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def start(self) -> subprocess.Popen:
        fields = FIELDS | (OF_MUTUAL if self.name == "mutual" else {}) | {"data.dir": self.folder / "data"}
        command = [sys.executable, "-m", "jaxseg.main", f"--config=configs/demo.py{VARIANTS[self.name]}"]
        command += [f"--workdir={self.workdir}", *(f"--config.{path}={value}" for path, value in fields.items())]
        environment = {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "compiled")}
        log = (self.folder / "log").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)

    def logged(self, name: str) -> list[str]:
        path = self.workdir / name
        return path.read_text().splitlines() if path.exists() else []

    def traces(self) -> dict[str, set]:
        """What the files tell of each kind of moment; a new trace is such a moment."""
        steps, scores = len(self.logged("train.jsonl")), len(self.logged("eval.jsonl"))
        waits = steps > 0 and steps % STEPS_OF_EVALUATION == 0 and scores < steps // STEPS_OF_EVALUATION
        return {
            "start-up": {time.monotonic()},
            "preparation": set((self.folder / "data").glob("prepared/segmentation/*/incomplete.*")),
            "step": {steps},
            "checkpoint": set((self.workdir / "checkpoints").glob("*tmp*")),
            "evaluation": {steps} if waits else set(),  # the step is logged, its scores are not yet
        }


def disturb(case: Case, kinds: list[str], rng: random.Random) -> list[dict]:
    """Starts, kills, starts again, once for every kind; then lets the run end. Where each kill fell."""
    fell = []
    for kind in kinds:
        if kind == "preparation":
            shutil.rmtree(case.folder / "data", ignore_errors=True)  # to be prepared again, to the same records
        before, delay = case.traces()[kind], rng.uniform(0, AFTER_S[kind])
        child = case.start()
        while child.poll() is None and not case.traces()[kind] - before:
            time.sleep(POLL_S)
        end = time.monotonic() + delay
        while child.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)
        over = child.poll() is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
        step = len(case.logged("train.jsonl"))
        fell.append({"kind": kind, "after_s": round(delay, 3), "logged_steps": step, "killed": not over})
        how = "the run was over before" if over else "killed in"
        print(f"{case.name}: {how} {kind}, {step} steps logged", flush=True)
        if over:
            break
    return fell


def finish(case: Case) -> None:
    """Lets the run end. Raises RuntimeError where it does not end well."""
    if status := case.start().wait():
        raise RuntimeError(f"{case.name}: exit status {status}; see {case.folder / 'log'}")


def leaves(case: Case) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint, by path."""
    config = load_config(case.workdir)
    peers, _ = create_peers(config, num_classes=LABELS[config.data.name].num_classes, steps=1)
    with checkpoint.open_manager(case.workdir, config.checkpoint, read_only=True) as manager:
        peers = checkpoint.restore(manager, manager.latest_step(), peers)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(peers)}


def differences(one: Case, other: Case) -> list[str]:
    """What is not the same in two runs, by name."""
    found = [name for name in ("train.jsonl", "eval.jsonl") if one.logged(name) != other.logged(name)]
    ours, theirs = leaves(one), leaves(other)
    found += [path for path in ours | theirs if not np.array_equal(ours.get(path), theirs.get(path))]
    scores = [json.loads((case.workdir / "results.json").read_text())["peers"] for case in (one, other)]
    return found + (["results.json"] if scores[0] != scores[1] else [])


def compare(name: str, folder: Path, kinds: list[str], rng: random.Random) -> dict:
    """One kind of run, disturbed and not."""
    whole, disturbed = (Case(name, folder / f"{name}-{how}") for how in ("whole", "disturbed"))
    for case in (whole, disturbed):
        case.folder.mkdir(parents=True)
    finish(whole)
    fell = disturb(disturbed, kinds, rng)
    finish(disturbed)
    found = differences(whole, disturbed)
    verdict = f"differs in {', '.join(found[:5])}" if found else "equal bit for bit"
    print(f"{name}: {sum(f['killed'] for f in fell)} kills, {verdict}", flush=True)
    counts = {"steps": len(whole.logged("train.jsonl")), "arrays": len(leaves(whole))}
    return {"run": name, "kills": fell, **counts, "differs": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default=",".join(VARIANTS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng, results = random.Random(options.seed), []
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.runs.split(","):
            kinds = [[*AFTER_S][i % len(AFTER_S)] for i in range(options.kills)]
            results.append(compare(name, Path(folder), kinds, rng))
    if options.output:
        where = {"command": " ".join(["python", "-m", "scripts.chaos", *sys.argv[1:]]), "commit": commit()}
        write_json(options.output, where | {"seed": options.seed, "jax": jax.__version__, "results": results})
    return 1 if any(result["differs"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
