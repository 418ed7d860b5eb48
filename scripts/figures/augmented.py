"""What augmentation does: the first images of training, as prepared and as its steps get them, with their masks.

    python -m scripts.figures.augmented [--config=configs/demo.py] [--images=4] [--output=augmented.png]
                                        [--config.augment.rotate_degrees=30 …]

Of an experiment without augmentation, what the usual one would do.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxseg import cli
from jaxseg.config_checks import validate
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.data.records import Prepared
from jaxseg.files import make_parent
from jaxseg.reporting.figures import augmentation_figure

Pair = tuple[np.ndarray, np.ndarray]


def before_and_after(prepared: Prepared, config: ConfigDict, *, images: int) -> tuple[list[Pair], list[Pair]]:
    """(image, label), uint8, of the first images of the stream that training sees: as prepared, and changed."""
    records = pipeline.stream(prepared, seed=config.seed)
    changed = pipeline.train_pairs(prepared, config)
    before = [(records[i]["image"], records[i]["label"]) for i in range(images)]
    return before, [changed[i] for i in range(images)]


def execute() -> None:
    config = flags.FLAGS.config
    output = Path(flags.FLAGS.output)
    config.augment.name = "usual"
    validate(config)
    make_parent(output)
    prepared = prepare(config.data)
    before, after = before_and_after(prepared, config, images=flags.FLAGS.images)
    augmentation_figure(output, before, after, prepared.labels)
    print(f"written: {output}")


def define() -> None:
    cli.define_config_file("configs/demo.py")
    flags.DEFINE_integer("images", 4, "How many.", lower_bound=1)
    flags.DEFINE_string("output", "augmented.png", "The PNG to write.")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(execute, argv, usage=__doc__, define=define)


if __name__ == "__main__":
    sys.exit(main())
