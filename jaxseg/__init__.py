"""jaxseg: semantic segmentation with mutual information in JAX and Flax.

import jaxseg

network = jaxseg.load("runs/demo")
label = network.predict("photo.jpg")  # uint8 [h, w]: numbers of network.labels.names
"""

from pathlib import Path

from jaxseg.errors import InputError

__all__ = ["InputError", "load"]
__version__ = "0.1.0"


def load(run: str | Path, *, checkpoint: str | int = "last", peer: str | None = None, config: str | Path | None = None):
    """A network that is ready to predict: `load(…).predict(image) -> uint8 [h, w]` (`jaxseg.inference.predictor.Network`).

    run: a folder that `python -m jaxseg.main` trained in; or, with config (such as "configs/unet_voc.py"), a file of
    weights as in `config.model.init_from`. checkpoint: "last", "best" or a step. peer: of a run with several; default: the
    reported one. Raises InputError.
    """
    from jaxseg.inference import (
        predictor,  # here, because most of jaxseg is of use without JAX, which takes seconds to import
    )

    return predictor.load(run, checkpoint=checkpoint, peer=peer, config=config)
