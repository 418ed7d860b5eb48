"""Rows of image, ground truth and the prediction of each run, as in the study's Figures 1 and 2.

    python -m scripts.figures.predictions [NAME=]RUN … [--val=0,7,12 | --images FILE …] [--checkpoint=last|best|STEP]
                                       [--output=predictions.png]

RUN is a folder that `python -m jaxseg.main` trained in; NAME stands above its column. Without --images: validation
images of the first run's data set, by number. With: pictures of any size, without ground truth, predicted as by
`python -m jaxseg.predict`. All runs must know the same classes. In the truth void has the data set's own color (cream in
VOC, black in Cityscapes); predictions there are shown as they are.
"""

import argparse
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.config import load_config
from jaxseg.data.prepare import prepare
from jaxseg.errors import InputError
from jaxseg.inference.predictor import load_predictors, to_pixels
from jaxseg.reporting.figures import prediction_figure
from jaxseg.training.peers import labels_of_run
from scripts.entry import options_of, run


def chosen_images(config: ConfigDict, options: argparse.Namespace) -> tuple[list, list | None]:
    """Images and, of the validation split, their label maps. Raises InputError."""
    if not options.images:
        records = prepare(config.data).records("val")
        numbers = options.val.split(",")
        if not all(number.isdecimal() and int(number) < len(records) for number in numbers):
            raise InputError(f"--val={options.val}: there are validation images 0 to {len(records) - 1}.")
        shown = [records[int(number)] for number in numbers]
        return [record["image"] for record in shown], [record["label"] for record in shown]
    return [to_pixels(path) for path in options.images], None


def main(options: argparse.Namespace) -> None:
    runs = {}
    for word in options.runs:
        name, equals, folder = word.partition("=")
        runs[name if equals else Path(word).name] = Path(folder if equals else word)
    configs = {name: load_config(folder) for name, folder in runs.items()}
    first = next(iter(configs.values()))
    labels = labels_of_run(first, next(iter(runs.values())))
    for name, config in configs.items():
        if labels_of_run(config, runs[name]).names != labels.names:
            raise InputError(
                f"{name} knows the classes of {config.data.name}, {next(iter(configs))} those of {first.data.name}."
            )
    images, truth = chosen_images(first, options)
    predictions = {}
    for name, config in configs.items():
        (network,) = load_predictors(config, runs[name], options.checkpoint, names=[config.peer])
        predictions[name] = [network.predict(image, resize="run" if options.images else "none") for image in images]
    prediction_figure(options.output, images, truth, predictions, labels)
    print(f"written: {options.output}")


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    parser.add_argument("--val", default="0,1,2,3", help="numbers of validation images")
    parser.add_argument("--images", nargs="+", type=Path, default=[])
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--output", type=Path, default=Path("predictions.png"))
    run(main, parser)
