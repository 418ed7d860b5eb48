"""The loss of a peer: the only place where terms are averaged, weighted and summed.

In: logits f32 [b, h, w, c] and the batch, of one *part* of the global batch: a device's share, or a slice of it under
gradient accumulation. Out: a scalar and its terms, such that the mean over the parts is the value over the whole
global batch, exactly, however void pixels are spread over the parts. So gradients are `pmean`ed and nothing else.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float
from ml_collections import ConfigDict

from jaxseg.losses.pixel import binary_cross_entropy, cross_entropy

Terms = dict[str, Array]
LossFn = Callable[..., tuple[Array, Terms]]


def pixel_loss(
    logits: Float[ArrayLike, "b h w c"], batch: dict, *, kind: str, pixels: Float[ArrayLike, ""], parts: int
) -> Float[Array, ""]:
    """The pixel term: sum over valid pixels / how many there are in the global batch, times `parts`.

    kind: "softmax" divides by max(pixels, 1), as PyTorch's mean; "sigmoid" by pixels + 1, as the RMI authors' code.
    """
    if kind == "softmax":
        return parts * cross_entropy(logits, batch["label"], batch["valid"]).sum() / jnp.maximum(pixels, 1)
    return parts * binary_cross_entropy(logits, batch["label"], batch["valid"]).sum() / (pixels + 1)


def make_loss(loss: ConfigDict) -> LossFn:
    """`loss_fn(logits, batch, pixels=, parts=) -> (scalar, {term: scalar})` as `config.loss` asks for."""

    def loss_fn(logits, batch, *, pixels, parts):
        pixel = pixel_loss(logits, batch, kind=loss.pixel, pixels=pixels, parts=parts)
        return pixel, {"pixel": pixel}

    return loss_fn
