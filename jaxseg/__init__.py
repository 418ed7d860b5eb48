"""jaxseg: semantic segmentation with mutual information in JAX and Flax.

import jaxseg

network = jaxseg.load("runs/demo")
label = network.predict("photo.jpg")  # uint8 [h, w]: numbers of network.labels.names
"""

from pathlib import Path

__version__ = "0.1.0"


def load(run: str | Path, *, checkpoint: str | int = "last", peer: str | None = None, config: str | Path | None = None):
    """A trained network that is ready to predict: `jaxseg.infer.load`, which see."""
    from jaxseg import infer  # here, because most of jaxseg is of use without JAX, which takes seconds to import

    return infer.load(run, checkpoint=checkpoint, peer=peer, config=config)
