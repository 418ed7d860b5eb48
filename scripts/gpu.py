"""What only a GPU can tell, in pieces of at most ten minutes, the most valuable first.

    bash scripts/gpu.sh [PIECE …] [--list] [--small] [--output=results/gpu]

Without a PIECE all of them, in order. A piece is stopped when its time is over (GPU_PIECE_SECONDS, default 600), and the
same command goes on with it: what is done is skipped, tests and studies continue within. OUTPUT/PIECE.json has device,
versions, commit, seconds, status and result of every part, written when each ends; of other code, versions or another
device it is begun anew. Logs are in OUTPUT/PIECE/. STUDY_SOURCES has the raw data of input, study and architectures:
"--source=camvid=DIR --source=voc2012=DIR". --small: small sizes, to try all of it on a CPU.

Exit status: 0 all is done, 1 a part failed (named at the end), 2 there is no such piece, 3 time was over and the same
command goes on, 143 stopped by SIGTERM.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxseg.errors import InputError
from jaxseg.files import read_json, write_json
from scripts.entry import options_of, run

ROOT = Path(__file__).parents[1]
PIECE_SECONDS = 600
POLL_S = 0.1
MOST_GRACE_S = 60  # of a piece's time, to save and leave after SIGTERM; a quarter of it where that is less
TESTS = (  # whose numbers depend on the device
    "tests/models", "tests/losses", "tests/test_ops.py", "tests/test_metrics.py", "tests/test_floor.py",
    "tests/training/test_step.py", "tests/training/test_step_of_peers.py", "tests/training/test_step_in_turn.py",
    "tests/training/test_parallel.py", "tests/training/test_loop.py", "tests/training/test_failures.py", "tests/inference",
)  # fmt: skip
SMALL_TESTS = ("tests/losses/test_pixel.py", "tests/test_ops.py", "tests/test_metrics.py")
SMALLEST_FIRST = {"camvid": "gpu_camvid", "voc2012": "gpu", "cityscapes": "gpu"}  # data set -> plan
SMALL_PLANS = Path("scripts/gpu_small")  # no name is a preset's: runs of both would be in one folder
RMI_CASES = 6  # of scripts.bench.rmi
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}


@dataclasses.dataclass(frozen=True)
class Part:
    """One command: `python -m MODULE OPTION…`; `small`: its options for --small. With `json` it takes --output=FILE.json."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    json: bool = True


@dataclasses.dataclass(frozen=True)
class Piece:
    name: str
    measures: str
    parts: tuple[Part, ...]


SMALL_STEP = ("--batch=2", "--size=64", "--rounds=1", "--steps=1")
STEP = Part("batch8", "scripts.bench.step", (), ("--features=2", *SMALL_STEP))
COMPILED_TOO = "--torch=all"  # of --small: only here PyTorch's compiler is done in seconds
WITHOUT_DATA = (
    Piece(
        "tests",
        "the tests whose numbers depend on the device",
        tuple(
            Part(name, "scripts.checks.numerics", ("-m", marker, *TESTS), ("-m", marker, *SMALL_TESTS))
            for name, marker in (("fast", "not slow"), ("slow", "slow"))
        ),
    ),
    Piece(
        "step",
        "training steps of the U-Net beside PyTorch eager, compiled and with autocast",
        (STEP, dataclasses.replace(STEP, name="batch32", options=("--batch=32",))),
    ),
    Piece(
        "rmi",
        "time and memory of RMI and its gradient beside PyTorch eager and compiled",
        tuple(
            Part(
                f"case{case}",
                "scripts.bench.rmi",
                (f"--case={case}",),
                (f"--case={case}", "--divide=4", "--rounds=1"),
            )
            for case in range(RMI_CASES)
        ),
    ),
    Piece(
        "mutual",
        "the mutual-learning step beside PyTorch eager, compiled and with autocast",
        (Part("batch10", "scripts.bench.mutual", (), SMALL_STEP),),
    ),
    Piece(
        "predict",
        "images predicted in a second beside PyTorch eager, compiled and with autocast",
        tuple(
            Part(
                network,
                "scripts.bench.predict",
                (f"--network={network}", "--batch=32", "--images=64"),
                (f"--network={network}", "--images=2", *SMALL_STEP, *([COMPILED_TOO] if network == "unet" else [])),
            )
            for network in ("unet", "deeplabv3")
        ),
    ),
    Piece(
        "parity",
        "RMI's value and gradient with PyTorch's in float64",
        (Part("rmi", "scripts.checks.rmi_parity", (), ("--only=* smooth, *",)),),
    ),
    Piece(
        "memory",
        "memory of the mutual step and the batch that fits",
        (Part("mutual", "scripts.bench.memory", (), ("--config=configs/demo.py", "--batches=1,2")),),
    ),
    Piece(
        "chaos",
        "runs that are killed and go on, bit for bit; what the deterministic operations cost that this needs",
        (
            Part("kills", "scripts.checks.chaos", ("--kills=5",), ("--kills=1", "--runs=plain", "--steps=40")),
            dataclasses.replace(STEP, name="step", environment=DETERMINISTIC),
        ),
    ),
)


def all_pieces(sources: dict[str, str], *, output: Path) -> list[Piece]:
    """The most valuable first; those that need data that are not given have no parts.

    Args:
      sources: data set -> folder of its raw files, the smallest first.
      output: where studies write.
    """
    given = [f"--source={name}={folder}" for name, folder in sources.items()]
    networks = [study("camvid", "architectures_gpu", "small_architectures", *given, output=output)]
    models = [
        study(name, SMALLEST_FIRST[name], "small_study", f"--datasets={name}", *given, output=output)
        for name in sources
    ]
    of_data = [
        Piece("study", "the study's models on the data that are given, the smallest set first", tuple(models)),
        Piece(
            "architectures",
            "seven networks with and without RMI on CamVid",
            tuple(networks if "camvid" in sources else ()),
        ),
    ]
    return [*WITHOUT_DATA[:5], input_piece(sources), *WITHOUT_DATA[5:], *of_data]


def input_piece(sources: dict[str, str]) -> Piece:
    parts = []
    for name, folder in sources.items():
        for augment in ("none", "usual"):
            options = (f"--dataset={name}", f"--source_dir={folder}", f"--augment={augment}")
            small = (*options, "--batches=4", "--rounds=1")
            parts.append(Part(f"{name}_{augment}", "scripts.bench.input", options, small))
    return Piece("input", "images read and cropped in a second beside a DataLoader, plain and augmented", tuple(parts))


def study(name: str, plan: str, small_plan: str, *options: str, output: Path) -> Part:
    """One plan; --small: one of `SMALL_PLANS`."""
    options = (*options, f"--output={output / 'study'}")
    small = (f"--plan={SMALL_PLANS / small_plan}.toml", *options)
    return Part(name, "jaxseg.study", (f"--preset={plan}", *options), small, json=False)


def source_folders(words: str) -> dict[str, str]:
    """Data set -> folder, of STUDY_SOURCES, the smallest first. Raises InputError."""
    folders = {}
    for word in shlex.split(words):
        name, _, folder = word.removeprefix("--source=").partition("=")
        if not word.startswith("--source=") or name not in SMALLEST_FIRST or not folder:
            known = ", ".join(SMALLEST_FIRST)
            raise InputError(f"STUDY_SOURCES: got {word}; expected --source=DATASET=FOLDER, DATASET one of {known}.")
        folders[name] = folder
    return {name: folders[name] for name in SMALLEST_FIRST if name in folders}


def origin_here() -> dict:
    """Code, commit, device and versions, found by a process of its own: this one must not hold the GPU."""
    ask = 'import json; from scripts.entry import origin; print(json.dumps(origin(["flax", "optax", "torch"])))'
    found = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise InputError(f"JAX does not start here:\n{found.stderr.strip().splitlines()[-1]}")
    return {"code": code_digest()} | json.loads(found.stdout.splitlines()[-1])


def code_digest() -> str:
    """Of all code, tests and configs: a folder that was copied here has no commit."""
    digest = hashlib.sha256()
    for folder in ("configs", "jaxseg", "scripts", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run_piece(piece: Piece, output: Path, *, origin: dict, seconds: float, small: bool) -> dict:
    """Runs the parts that are not done until time is over; what is in OUTPUT/PIECE.json then."""
    target = output / f"{piece.name}.json"
    before = read_json(target) if target.exists() else {}
    same = all(before.get(key) == origin[key] for key in ("code", "device", "versions"))
    parts = dict(before["parts"]) if same else {}
    end = time.monotonic() + seconds
    stop = end - min(MOST_GRACE_S, seconds / 4)
    for part in piece.parts:
        command = command_of(part, output / piece.name, small=small)
        known = parts.get(part.name, {})
        if known.get("command") != (typed := shlex.join(["python", *command])):
            known = {"status": None, "seconds": 0.0}
            (output / piece.name / f"{part.name}.json").unlink(missing_ok=True)
        if known.get("status") == 0:
            continue
        if (began := time.monotonic()) < stop:
            log = output / piece.name / f"{part.name}.log"
            status = run_part(command, log, stop=stop, end=end, environment=part.environment)
            known = known | {"status": status, "seconds": round(known["seconds"] + time.monotonic() - began, 1)}
        parts[part.name] = {"command": typed, **known} | result_of(output / piece.name / f"{part.name}.json")
        write_piece(target, piece, parts, origin=origin, small=small)
    return write_piece(target, piece, parts, origin=origin, small=small)


def command_of(part: Part, folder: Path, *, small: bool) -> list[str]:
    """What follows `python`."""
    output = [f"--output={folder / part.name}.json"] if part.json else []
    return ["-m", part.module, *output, *(part.small if small else part.options)]


def run_part(command: Sequence[str], log: Path, *, stop: float, end: float, environment: dict[str, str]) -> int | None:
    """Its exit status; None where it was still running at `stop`: it and all that it started got SIGTERM, at `end` SIGKILL."""
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = {name: f"{os.environ.get(name, '')} {value}".strip() for name, value in environment.items()}
    flags["PYTHONUNBUFFERED"] = "1"  # the log of what is killed is whole
    with log.open("ab") as written:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=written,
            stderr=written,
            env=os.environ | flags,
            process_group=0,
        )
    try:
        return process.wait(stop - time.monotonic())
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_group(process, end=end)


def end_group(process: subprocess.Popen, *, end: float) -> None:
    """Ends a process and all that it started: a study's run saves its state on SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            while number == signal.SIGTERM and time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(POLL_S)
        except ProcessLookupError:  # none is left
            break
    process.wait()


def result_of(path: Path) -> dict:
    """What the command wrote, but for the outcome of every single test."""
    return {"result": {key: value for key, value in read_json(path).items() if key != "tests"}} if path.exists() else {}


def write_piece(target: Path, piece: Piece, parts: dict, *, origin: dict, small: bool) -> dict:
    """Writes the piece's JSON. A status is an exit status, or None: time was over, or it was not begun."""
    status = {part.name: parts.get(part.name, {}).get("status") for part in piece.parts}
    content = {
        "piece": piece.name,
        "measures": piece.measures,
        "small": small,
        **origin,
        "seconds": round(sum(part.get("seconds", 0.0) for part in parts.values()), 1),
        "status": 1 if any(status.values()) else 0,
        "complete": all(value == 0 for value in status.values()),
        "parts": parts,
    }
    write_json(target, content)
    return content


def state_of(piece: Piece, content: dict) -> list[str]:
    """A line for every part that is not done."""
    status = {part.name: content["parts"].get(part.name, {}).get("status") for part in piece.parts}
    return [
        f"{piece.name}, {name}: {'unfinished' if s is None else f'status {s}'}" for name, s in status.items() if s != 0
    ]


def chosen_pieces(names: Sequence[str], pieces: list[Piece]) -> list[Piece]:
    """Those of these names, in the order of `pieces`; all without names. Raises InputError."""
    if unknown := set(names) - {piece.name for piece in pieces}:
        raise InputError(
            f"{min(unknown)}: there is no such piece; expected {', '.join(piece.name for piece in pieces)}."
        )
    return [piece for piece in pieces if piece.name in names or not names]


def main(options: argparse.Namespace) -> int:
    seconds = float(os.environ.get("GPU_PIECE_SECONDS", PIECE_SECONDS))
    pieces = all_pieces(source_folders(os.environ.get("STUDY_SOURCES", "")), output=options.output)
    chosen = chosen_pieces(options.pieces, pieces)
    if options.list:
        for piece in chosen:
            print(f"{piece.name:<14}{seconds:>5.0f} s  {piece.measures}")
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    origin = origin_here()
    lines = []
    for piece in chosen:
        print(f"== {piece.name}: {piece.measures}", flush=True)
        if not piece.parts:
            print("nothing to do: its data are not in STUDY_SOURCES")
            continue
        content = run_piece(piece, options.output, origin=origin, seconds=seconds, small=options.small)
        print(f"{'done' if content['complete'] else 'not done'}, {content['seconds']:.0f} s in all", flush=True)
        lines += state_of(piece, content)
    for line in lines:
        print(line, file=sys.stderr)
    failed = [line for line in lines if not line.endswith("unfinished")]
    return 1 if failed else 3 if lines else 0


def parser() -> argparse.ArgumentParser:
    options = options_of(__doc__)
    options.add_argument("pieces", nargs="*", metavar="PIECE")
    options.add_argument("--list", action="store_true", help="name the pieces, their time limit and what they measure")
    options.add_argument("--small", action="store_true", help="small sizes, to try all of it on a CPU")
    options.add_argument("--output", type=Path, default=Path("results/gpu"), metavar="FOLDER")
    return options


if __name__ == "__main__":
    run(main, parser())
