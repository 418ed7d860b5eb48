"""Trains and scores what an experiment file describes.

    python -m jaxseg.main --config=configs/unet_voc.py[:released] [--workdir=DIR] [--config.field=value …]

The same command again goes on where it stopped.
"""

from pathlib import Path

from absl import flags

from jaxseg import cli, show
from jaxseg.config import InputError, validate
from jaxseg.train import train_and_evaluate


def define_flags() -> None:
    cli.define_config_file()
    flags.DEFINE_string("workdir", None, "Where the run's files go; default: runs/NAME of the experiment file.")


def main() -> None:
    if flags.FLAGS["config"].value is None:
        raise InputError(f"--config=FILE is needed.\n{__doc__}")
    config = flags.FLAGS.config
    validate(config)
    workdir = Path(flags.FLAGS.workdir or default_workdir(flags.FLAGS["config"].config_filename))
    results = train_and_evaluate(config, workdir)
    show.print_results(results)
    print(f"figure:  {workdir / 'predictions.png'}")
    print(f"results: {workdir / 'results.json'}")
    print(next_step(config, workdir))


def default_workdir(config_file: str) -> Path:
    """runs/rmi_voc for configs/rmi_voc.py, runs/rmi_voc-released for its variant."""
    name, _, variant = config_file.partition(":")
    return Path("runs") / "-".join([Path(name).stem, *([variant] if variant else [])])


def next_step(config, workdir: Path) -> str:
    """One line on what to try next."""
    if config.data.name == "synthetic":
        return "next:    your own data: python -m jaxseg.main --config=configs/unet_camvid.py --config.data.source_dir=FOLDER"
    return f"next:    python -m jaxseg.evaluate --workdir={workdir} --checkpoint=best; tensorboard --logdir={workdir}"


if __name__ == "__main__":
    cli.run(main, usage=__doc__, define=define_flags)
