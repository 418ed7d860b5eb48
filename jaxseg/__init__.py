"""jaxseg: semantic segmentation with mutual information in JAX and Flax.

    import jaxseg

    network = jaxseg.load("runs/demo")
    label = network.predict("photo.jpg")  # uint8 [h, w]: numbers of network.labels.names

Files at the top of this package are commands and the shared vocabulary; every folder is a stage. A folder imports only
from those before it: data, models, losses, reporting, training, inference, studies.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxseg.errors import InputError
from jaxseg.version import __version__

if TYPE_CHECKING:
    from jaxseg.inference.predictor import Predictor

__all__ = ["InputError", "__version__", "load"]


def load(
    run: str | Path, *, checkpoint: str | int = "last", peer: str | None = None, config: str | Path | None = None
) -> "Predictor":
    """A trained network that is ready to predict images of any size.

    Args:
      run: a folder that `python -m jaxseg.main` trained in; or, with `config`, a file of weights as in
        `config.model.init_from`.
      checkpoint: "last", "best" or a step.
      peer: of a run with several networks; default: the reported one.
      config: an experiment file, such as "configs/unet_voc.py".

    Returns:
      The network. Its `predict(image, **options)` gives the class of every pixel, uint8 [h, w], its
      `probabilities(image, **options)` float32 [h, w, c], at the image's own size; the options are the fields of
      `jaxseg.inference.options.InferenceOptions`.

    Raises:
      InputError: where run, weights or config cannot be used.

    Example:
      network = jaxseg.load("runs/demo", checkpoint="best")
      label = network.predict("photo.jpg", flip=True)
      share_of_road = (label == network.labels.names.index("road")).mean()
    """
    from jaxseg.inference import predictor  # here: jaxseg.errors and others are of use without JAX, which takes seconds

    return predictor.load(run, checkpoint=checkpoint, peer=peer, config=config)
