"""The flags that say how a network looks at an image, shared by the commands that predict and evaluate.

In: absl's flags. Out: `InferenceOptions`.
"""

from absl import flags
from ml_collections import ConfigDict

from jaxseg.errors import InputError
from jaxseg.inference.options import InferenceOptions

OPTION_FLAGS = ("resize", "window_px", "overlap", "scales", "flip")


def define_option_flags() -> None:
    flags.DEFINE_string("resize", None, "run: to the size of the run's images; none: at their own pixels.")
    flags.DEFINE_integer("window_px", 0, "Side of sliding windows; 0: the image in one piece.")
    flags.DEFINE_float("overlap", 0.5, "Share of a window that the next one covers too.")
    flags.DEFINE_string("scales", "1", "Factors on the size, with commas; their probabilities are averaged.")
    flags.DEFINE_bool("flip", False, "Also the mirror image.")


def given_options(config: ConfigDict, *, resize: str) -> InferenceOptions:
    """What these flags ask for; `resize` where they do not say. Raises InputError."""
    values = flags.FLAGS
    try:
        scales = tuple(float(scale) for scale in values.scales.split(","))
    except ValueError as error:
        raise InputError(f"--scales={values.scales}: expected numbers with commas, such as 0.75,1,1.25.") from error
    if values["overlap"].present and not values.window_px:
        raise InputError(f"--overlap={values.overlap} has no effect without --window_px; add it, or drop this.")
    return InferenceOptions(
        resize=values.resize or resize,
        window_px=values.window_px,
        overlap=values.overlap,
        scales=scales,
        flip=values.flip,
        batch=config.eval.batch_size,
    )
