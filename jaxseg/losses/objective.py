"""The loss of a peer: the only place where terms are averaged, weighted and summed.

In: logits f32 [b, h, w, c] and the batch, of one microbatch of the global batch: a device's share, or a slice of it
under gradient accumulation. Out: a scalar and its terms, such that the mean over the `num_parts` microbatches is the
value over the whole global batch, exactly, however void pixels are spread over them. So gradients are `pmean`ed and
nothing else.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer
from ml_collections import ConfigDict

from jaxseg.config import choices_of
from jaxseg.losses.mutual import divergence
from jaxseg.losses.pixel import binary_cross_entropy, cross_entropy
from jaxseg.losses.rmi import check_arguments, rmi_of_maps
from jaxseg.losses.rmi_maps import pooled_maps
from jaxseg.ops import promote_to_float32, valid_pixels

Terms = dict[str, Array]
LossFn = Callable[..., tuple[Array, Terms]]


@functools.partial(jax.jit, static_argnames=("pixel", "combine", "radius", "pool", "pool_size"))
def pixel_and_rmi_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    pixel: str = "sigmoid",
    weight: Float[ArrayLike, ""] = 0.5,
    combine: str = "convex",
    radius: int = 3,
    pool: str = "max",
    pool_size: int = 3,
) -> tuple[Float[Array, ""], Terms]:
    """λ pixel + (1 - λ) rmi ("convex": Zhao et al., arXiv 1910.12037, equation 17) or pixel + λ rmi ("additive").

    Args:
      logits: any float; all arithmetic is in float32 or wider.
      label: class of every pixel; what is not in 0..c-1 (255, say) is void.
      pixel: "sigmoid", binary cross-entropy of every class, or "softmax", cross-entropy: the authors' `forward_sigmoid`
        and `forward_softmax_sigmoid`.
      weight: λ.
      combine: "convex" or "additive".
      radius: side of the regions in pixels; this and the rest as for `jaxseg.losses.rmi_lower_bound`.
      pool: downsampling before regions are cut.
      pool_size: its window and stride in pixels.

    Returns:
      The loss, and its terms {"pixel": scalar, "rmi": scalar}, unweighted.

    Raises:
      ValueError: while tracing, for an unknown choice or shapes that do not fit.

    >>> label = jnp.arange(256).reshape(1, 16, 16) // 128
    >>> loss, terms = pixel_and_rmi_loss(jnp.zeros((1, 16, 16, 2)), label)
    >>> round(float(terms["pixel"]), 3)  # 2 ln 2 · 256 / 257
    1.381
    """
    check_choice("pixel", pixel, choices_of("loss.pixel"))
    check_choice("combine", combine, choices_of("loss.combine"))
    logits = promote_to_float32(jnp.asarray(logits))
    label = jnp.asarray(label)
    valid = valid_pixels(label, logits.shape[-1])
    pixels = valid.sum(dtype=logits.dtype)
    rmi_term = region_terms(logits, label, valid, pixel=pixel, radius=radius, pool=pool, pool_size=pool_size)["rmi"]
    pixel_term = pixel_loss(logits, label, valid, kind=pixel, pixels=pixels, num_parts=1)
    loss = combine_terms(pixel_term, rmi_term, weight=weight, combine=combine)
    return loss, {"pixel": pixel_term, "rmi": rmi_term}


def make_loss(loss: ConfigDict, mutual: ConfigDict) -> LossFn:
    """The loss of one peer, as `config.loss` and `config.mutual` ask.

    L = own loss + auxiliary_weight · pixel term of the auxiliary logits + w · mean over the other peers of
    KL(p_peer || p_own).

    Args:
      loss: the peer's `config.loss`.
      mutual: `config.mutual`.

    Returns:
      `loss_fn(logits, batch, *, peer_logits, auxiliary, pixels, num_parts) -> (scalar, {term: scalar})`. The terms are
      unweighted; with w = 0 the divergence is measured without being learnt from. pixels: valid ones of the global batch.
    """
    region = {"pixel": loss.pixel, "radius": loss.radius, "pool": loss.pool, "pool_size": loss.pool_size}
    agreement = {"over": mutual.pixels, "form": mutual.form, "temperature": mutual.temperature}

    def loss_fn(logits, batch: Mapping, *, peer_logits=(), auxiliary=(), pixels, num_parts):
        label = batch["label"]
        valid = batch["valid"]
        count = {"pixels": pixels, "num_parts": num_parts}
        terms = {"pixel": pixel_loss(logits, label, valid, kind=loss.pixel, **count)}
        total = terms["pixel"]
        if loss.name == "pixel_and_rmi":
            terms |= region_terms(logits, label, valid, **region)
            total = combine_terms(total, terms["rmi"], weight=loss.weight, combine=loss.combine)
        if auxiliary:
            terms["auxiliary"] = sum(pixel_loss(head, label, valid, kind=loss.pixel, **count) for head in auxiliary)
            total += loss.auxiliary_weight * terms["auxiliary"]
        if peer_logits:
            terms["kl"] = mutual_loss(logits, peer_logits, valid, **count, **agreement)
            total += mutual.weight * terms["kl"] if mutual.weight else 0.0
        return total, terms

    return loss_fn


def pixel_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    kind: str,
    pixels: Float[ArrayLike, ""],
    num_parts: int,
) -> Float[Array, ""]:
    """The pixel term: sum over valid pixels / how many there are in the global batch, times `num_parts`.

    kind: "softmax" divides by max(pixels, 1), as PyTorch's mean; "sigmoid" by pixels + 1, as the RMI authors' code.
    """
    if kind == "softmax":
        return num_parts * cross_entropy(logits, label, valid).sum() / jnp.maximum(pixels, 1)
    return num_parts * binary_cross_entropy(logits, label, valid).sum() / (pixels + 1)


def region_terms(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    pixel: str,
    radius: int,
    pool: str,
    pool_size: int,
) -> Terms:
    """{"rmi": mean over images of the sum over classes, "rmi_present": mean over images of the mean over classes present}.

    The sum is what the authors minimise; an absent class adds a constant -3.8 to it, so that it tells more of how many
    classes there are than of how well they are seen. The second has no part in the loss. No class present counts as 0.
    """
    check_arguments(logits, label, radius=radius, pool=pool, pool_size=pool_size)
    truth, prob = pooled_maps(logits, label, valid, pool=pool, pool_size=pool_size, clip=pixel == "softmax")
    bounds = rmi_of_maps(truth, prob, radius)  # [b c]
    present = (jax.nn.one_hot(label, bounds.shape[1], dtype=bool) & valid[..., None]).any((1, 2))  # [b c]
    mean_present = jnp.where(present, bounds, 0).sum(1) / jnp.maximum(present.sum(1, dtype=bounds.dtype), 1)
    return {"rmi": bounds.sum(1).mean(), "rmi_present": lax.stop_gradient(mean_present.mean())}


def mutual_loss(
    logits: Float[ArrayLike, "b h w c"],
    peer_logits: Sequence[Float[ArrayLike, "b h w c"]],
    valid: Bool[ArrayLike, "b h w"],
    *,
    pixels: Float[ArrayLike, ""],
    num_parts: int,
    over: str,
    form: str,
    temperature: float,
) -> Float[Array, ""]:
    """Mean over the other peers j of KL(p_j || p_own), mean over the global batch's pixels, `over` "all" or "valid" ones."""
    mask = valid if over == "valid" else jnp.ones_like(valid)
    count = jnp.maximum(pixels, 1) if over == "valid" else num_parts * mask.size
    total = sum(divergence(logits, peer, mask, form=form, temperature=temperature).sum() for peer in peer_logits)
    return num_parts * total / (len(peer_logits) * count)


def combine_terms(pixel: Array, rmi: Array, *, weight: Float[ArrayLike, ""], combine: str) -> Array:
    return weight * pixel + (1 - weight) * rmi if combine == "convex" else pixel + weight * rmi


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}; expected {' or '.join(choices)}.")
