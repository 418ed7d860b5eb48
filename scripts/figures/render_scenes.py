"""Renders street scenes that no training run has seen, as pictures of several sizes, to predict where there is no photo.

    python -m scripts.figures.render_scenes FOLDER [--sizes=256x128,512x256,300x300,160x320] [--first=10000]

Scene number FIRST + i is cut to the shape of the i-th size (width × height), around its middle, and resized to it.
"""

import argparse
import re
from pathlib import Path

from PIL import Image, ImageOps

from jaxseg.data.synthetic import render_scene
from jaxseg.errors import InputError
from scripts.entry import options_of, run

FIRST = 10_000  # a data set's scenes are numbered from 0, as many as config.data.scenes


def main(options: argparse.Namespace) -> None:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", options.sizes):
        raise InputError(
            f"--sizes={options.sizes}: expected WIDTHxHEIGHT with commas between, such as 256x128,300x300."
        )
    options.folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(options.sizes.split(",")):
        width, height = map(int, size.split("x"))
        scene = Image.fromarray(render_scene(options.first + i)[0])
        path = options.folder / f"scene_{options.first + i}_{size}.png"
        ImageOps.fit(scene, (width, height), Image.Resampling.BICUBIC).save(path)
        print(f"written: {path}")


if __name__ == "__main__":
    parser = options_of(__doc__, first=FIRST)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="256x128,512x256,300x300,160x320", help="WIDTHxHEIGHT, with commas")
    run(main, parser)
