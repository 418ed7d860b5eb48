"""Renders street scenes that no training run has seen, as pictures of several sizes, to predict where there is no photo.

    python -m scripts.figures.render_scenes FOLDER [--sizes=256x128,512x256,300x300,160x320] [--first=10000]

Scene number FIRST + i is cut to the shape of the i-th size (width × height), around its middle, and resized to it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image, ImageOps

from jaxseg.data.synthetic import render_scene

FIRST = 10_000  # a data set's scenes are numbered from 0, as many as config.data.scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="256x128,512x256,300x300,160x320", help="WIDTHxHEIGHT, with commas")
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first scene")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(options.sizes.split(",")):
        width, height = map(int, size.split("x"))
        scene = Image.fromarray(render_scene(options.first + i)[0])
        path = options.folder / f"scene_{options.first + i}_{size}.png"
        ImageOps.fit(scene, (width, height), Image.Resampling.BICUBIC).save(path)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
