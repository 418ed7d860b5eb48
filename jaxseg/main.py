"""Trains and scores what an experiment file describes.

    python -m jaxseg.main --config=configs/unet_voc.py[:released]
        [--workdir=DIR] [--config.field=value …] [--mode=train|overfit|profile]
        [--distributed [--coordinator=HOST:PORT --processes=N --process=I]]

The same command again goes on where it stopped. On several hosts, every one runs it with --distributed. --mode=overfit
tries whether four images can be learned (jaxseg/training/overfit.py), --mode=profile times steps
(jaxseg/training/profiling.py).
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxseg import cli
from jaxseg.config_checks import validate
from jaxseg.errors import InputError
from jaxseg.files import user_path
from jaxseg.reporting.terminal import print_results
from jaxseg.training import distributed
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.overfit import overfit, verdict
from jaxseg.training.profiling import profile, show_profile

EXIT_NOT_LEARNED = 1


def define_flags() -> None:
    cli.define_config_file()
    flags.DEFINE_string("workdir", None, "Where the run's files go; default: runs/NAME of the experiment file.")
    flags.DEFINE_enum("mode", "train", ["train", "overfit", "profile"], "What to do.")
    flags.DEFINE_bool("distributed", False, "One of several processes; their places are found in the environment.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the environment does not tell.")
    flags.DEFINE_integer("processes", None, "How many processes there are, likewise.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which one this is, from 0, likewise.", lower_bound=0)


def execute() -> int:
    if flags.FLAGS["config"].value is None:
        raise InputError(f"--config=FILE is needed.\n{__doc__}")
    config = flags.FLAGS.config
    validate(config)
    join_others()
    given = flags.FLAGS.workdir or default_workdir(flags.FLAGS["config"].config_filename)  # type: ignore[attr-defined]
    workdir = user_path(given, what="--workdir=")
    if flags.FLAGS.mode != "train":
        return try_out(config, workdir, flags.FLAGS.mode)
    results = train_and_evaluate(config, workdir)
    if not distributed.is_primary_host():
        return 0
    print_results(results)
    print(f"figure:  {workdir / 'predictions.png'}")
    print(f"results: {workdir / 'results.json'}")
    print(next_step(config, workdir))
    return 0


def try_out(config, workdir: Path, mode: str) -> int:
    """The other modes, on one host."""
    if flags.FLAGS.distributed:
        raise InputError(f"--mode={mode} runs on one host; drop --distributed.")
    if mode == "profile":
        show_profile(profile(config, workdir))
        print(f"trace:   {workdir / 'profile'} (pip install xprof; xprof --port 8791 {workdir / 'profile'})")
        print(f"summary: {workdir / 'profile.json'}")
        return 0
    results = overfit(config, workdir)
    print_results(results)
    lines = (workdir / "trial/train.jsonl").read_text(encoding="utf-8").splitlines()
    print(f"figure:  {workdir / 'trial/predictions.png'}")
    print(verdict(results, config, [json.loads(line)[f"{config.peer}/loss"] for line in lines]))
    return 0 if results["learned"] else EXIT_NOT_LEARNED


def join_others() -> None:
    """Joins the other hosts where the flags ask for it. Raises InputError."""
    place = {name: flags.FLAGS[name].value for name in ("coordinator", "processes", "process")}
    given = [f"--{name}={value}" for name, value in place.items() if value is not None]
    if flags.FLAGS.distributed:
        distributed.join(**place)
    elif given:
        raise InputError(f"{' '.join(given)} without --distributed; add it, or drop {'them' if given[1:] else 'it'}.")


def default_workdir(config_file: str) -> Path:
    """runs/rmi_voc for configs/rmi_voc.py, runs/rmi_voc-released for its variant."""
    name, _, variant = config_file.partition(":")
    return Path("runs") / "-".join([Path(name).stem, *([variant] if variant else [])])


def next_step(config, workdir: Path) -> str:
    """One line on what to try next."""
    if config.data.name == "synthetic":
        return "next:    your own data: python -m jaxseg.main --config=configs/unet_camvid.py --config.data.source_dir=FOLDER"
    run = shlex.quote(str(workdir))
    return f"next:    python -m jaxseg.evaluate --workdir={run} && python -m jaxseg.report --html {run}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags)


if __name__ == "__main__":
    sys.exit(main())
