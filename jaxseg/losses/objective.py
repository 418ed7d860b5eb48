"""The loss of a peer: the only place where terms are averaged, weighted and summed.

In: logits f32 [b, h, w, c] and the batch, of one microbatch of the global batch: a device's share, or a slice of it
under gradient accumulation. Out: a scalar and its terms, such that the mean over the `num_parts` microbatches is the
value over the whole global batch, exactly, however void pixels are spread over them. So gradients are `pmean`ed and
nothing else.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer
from ml_collections import ConfigDict

from jaxseg.config import choices_of
from jaxseg.losses.arguments import loss_of_labels
from jaxseg.losses.lovasz import lovasz
from jaxseg.losses.mutual import divergence
from jaxseg.losses.overlap import tversky
from jaxseg.losses.pixel import binary_cross_entropy, binary_focal, cross_entropy, focal, pixel_weights
from jaxseg.losses.rmi import check_arguments, rmi_of_maps
from jaxseg.losses.rmi_maps import pooled_maps
from jaxseg.ops import promote_to_float32, sum_pixels, valid_pixels

Terms = dict[str, Array]
CROSS_ENTROPIES = ("softmax", "sigmoid")  # what the RMI authors' code puts beside RMI


@loss_of_labels("pixel", "combine", "radius", "pool", "pool_size")
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
    check_choice("pixel", pixel, CROSS_ENTROPIES)
    check_choice("combine", combine, choices_of("loss.combine"))
    logits = promote_to_float32(jnp.asarray(logits))
    label = jnp.asarray(label)
    valid = valid_pixels(label, logits.shape[-1])
    pixels = valid.sum(dtype=logits.dtype)
    rmi_term = rmi_terms(logits, label, valid, pixel=pixel, radius=radius, pool=pool, pool_size=pool_size)["rmi"]
    pixel_term = pixel_loss(logits, label, valid, kind=pixel, pixels=pixels, num_parts=1)
    loss = combine_terms(pixel_term, rmi_term, weight=weight, combine=combine)
    return loss, {"pixel": pixel_term, "rmi": rmi_term}


@dataclasses.dataclass(frozen=True, eq=False)
class LossFn:
    """The loss of one peer, as `config.loss` and `config.mutual` ask.

    L = own loss + auxiliary_weight · pixel term of the auxiliary logits + w · mean over the other peers of
    KL(p_peer || p_own). The own loss is a pixel term, a region term, or both; see `combine_terms` and `ramp`.

    Args:
      loss: the peer's `config.loss`.
      mutual: `config.mutual`.
      class_weights: of the cross-entropy, one per class; None: all 1.
    """

    loss: ConfigDict
    mutual: ConfigDict
    class_weights: tuple[float, ...] | None = None

    def __call__(
        self,
        logits: Float[ArrayLike, "b h w c"],
        batch: Mapping[str, ArrayLike],
        *,
        peer_logits: Sequence[Float[ArrayLike, "b h w c"]] = (),
        auxiliary: Sequence[Float[ArrayLike, "b h w c"]] = (),
        pixels: Float[ArrayLike, ""],
        num_parts: int,
        weights: Float[ArrayLike, ""] | None = None,
        step: Integer[ArrayLike, ""] = 0,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, ""], Terms]:
        """The loss of a microbatch, and its terms, unweighted; with w = 0 the divergence is measured, not learnt from.

        Args:
          logits: of the peer.
          batch: of which label and valid are read.
          peer_logits: of the other peers.
          auxiliary: of auxiliary heads.
          pixels: valid ones of the global batch.
          num_parts: microbatches that it is cut into.
          weights: sum of `weights_of` over the global batch, where there are class weights.
          step: updates made before this one.
          axis_name: of devices whose pixels Dice and Tversky take together.
        """
        arrays = (batch["label"], batch["valid"])
        count = {"pixels": pixels, "num_parts": num_parts}
        options = self.pixel_options() | count | {"weights": weights}
        total, terms = self.own_loss(logits, *arrays, options, step=step, axis_name=axis_name)
        if auxiliary:
            terms["auxiliary"] = sum(pixel_loss(head, *arrays, **options) for head in auxiliary)
            total += self.loss.auxiliary_weight * terms["auxiliary"]
        if peer_logits:
            mutual = self.mutual
            agreement = {"over": mutual.pixels, "form": mutual.form, "temperature": mutual.temperature}
            terms["kl"] = mutual_loss(logits, peer_logits, batch["valid"], **count, **agreement)
            total += mutual.weight * terms["kl"] if mutual.weight else 0.0
        return total, terms

    def own_loss(self, logits, label, valid, options: Mapping, *, step, axis_name) -> tuple[Array, Terms]:
        """The pixel term, the region term, or both. options: of `pixel_loss`."""
        loss = self.loss
        terms: Terms = {}
        if loss.name.startswith("pixel"):
            terms["pixel"] = pixel_loss(logits, label, valid, **options)
        if loss.name == "pixel":
            return terms["pixel"], terms
        region = loss.name.removeprefix("pixel_and_")
        terms |= self.region_terms(region, logits, label, valid, axis_name=axis_name)
        if "pixel" not in terms:
            return terms[region], terms
        total = combine_terms(terms["pixel"], terms[region], weight=loss.weight, combine=loss.combine)
        if loss.start_steps or loss.ramp_steps:
            share = terms["ramp"] = ramp(step, start_steps=loss.start_steps, ramp_steps=loss.ramp_steps)
            total = (1 - share) * terms["pixel"] + share * total
        return total, terms

    def weights_of(self, batch: Mapping[str, ArrayLike]) -> Float[Array, ""] | None:
        """Sum over pixels of the weights of their classes, which divides the cross-entropy; None: pixels weigh the same."""
        if self.class_weights is None:
            return None
        return sum_pixels(pixel_weights(batch["label"], batch["valid"], jnp.array(self.class_weights, jnp.float32)))

    def pixel_options(self) -> dict[str, Any]:
        loss = self.loss
        options = {"kind": loss.pixel, "gamma": loss.focal_gamma, "label_smoothing": loss.label_smoothing}
        return options | {"class_weights": self.class_weights}

    def region_terms(self, region: str, logits, label, valid, *, axis_name: str | None) -> Terms:
        """{region: scalar} of a microbatch, and with RMI what `rmi_terms` has beside it."""
        loss = self.loss
        if region == "rmi":
            options = {"radius": loss.radius, "pool": loss.pool, "pool_size": loss.pool_size}
            pixel = loss.pixel if loss.name == "pixel_and_rmi" else "sigmoid"  # alone it is `rmi_loss`
            return rmi_terms(logits, label, valid, pixel=pixel, **options)
        if region == "lovasz":
            return {"lovasz": lovasz_loss_of(logits, label, valid, per_image=True)}
        alpha, beta = (0.5, 0.5) if region == "dice" else (loss.tversky_alpha, loss.tversky_beta)
        shape = {"alpha": alpha, "beta": beta, "smooth": loss.smooth}
        return {region: tversky(logits, label, valid, **shape, axis_name=axis_name)}


def make_loss(loss: ConfigDict, mutual: ConfigDict, *, class_weights: Sequence[float] | None = None) -> LossFn:
    """The loss of one peer: `config.loss` and `config.mutual`, and weights of the classes where the first asks for them."""
    return LossFn(loss, mutual, None if class_weights is None else tuple(class_weights))


def ramp(step: Integer[ArrayLike, ""], *, start_steps: int, ramp_steps: int) -> Float[Array, ""]:
    """r in L = (1 - r) pixel + r (both terms, as `combine_terms` has them), before update `step`, counted from 0.

    0 up to start_steps, then rising by 1 / ramp_steps a step to 1; with ramp_steps = 0 it is 1 from start_steps on.

    >>> [float(ramp(step, start_steps=2, ramp_steps=4)) for step in (0, 2, 3, 6, 9)]
    [0.0, 0.0, 0.25, 1.0, 1.0]
    """
    since = jnp.asarray(step, jnp.int32) - start_steps
    if not ramp_steps:
        return (since >= 0).astype(jnp.float32)
    return jnp.clip(since.astype(jnp.float32) / ramp_steps, 0, 1)


def pixel_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    kind: str,
    pixels: Float[ArrayLike, ""],
    num_parts: int,
    gamma: Float[ArrayLike, ""] = 2.0,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | Float[ArrayLike, " c"] | None = None,
    weights: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    """The pixel term: sum over valid pixels / how many there are in the global batch, times `num_parts`.

    kind: "softmax" divides by max(pixels, 1), as PyTorch's mean, or with class weights by their sum, `weights`, and so do
    "focal" and "focal_sigmoid", without weights; "sigmoid" by pixels + 1, as the RMI authors' code.
    """
    arrays = (logits, label, valid)
    if kind == "sigmoid":
        return num_parts * sum_pixels(binary_cross_entropy(*arrays)) / (pixels + 1)
    if kind != "softmax":
        of_pixel = {"focal": focal, "focal_sigmoid": binary_focal}[kind](*arrays, gamma=gamma)
        return num_parts * sum_pixels(of_pixel) / jnp.maximum(pixels, 1)
    if class_weights is None:
        of_pixel = cross_entropy(*arrays, label_smoothing=label_smoothing)
        return num_parts * sum_pixels(of_pixel) / jnp.maximum(pixels, 1)
    of_class = jnp.asarray(class_weights, logits.dtype)
    of_pixel = cross_entropy(*arrays, class_weights=of_class, label_smoothing=label_smoothing)
    return num_parts * sum_pixels(of_pixel) / jnp.where(weights > 0, weights, 1)


def lovasz_loss_of(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    per_image: bool,
) -> Float[Array, ""]:
    """`lovasz` of all pixels together, or mean over images of it, an image that is all void being 0."""
    images = logits.shape[0] if per_image else 1
    logits = logits.reshape(images, -1, logits.shape[-1])
    return jax.vmap(lovasz)(logits, label.reshape(images, -1), valid.reshape(images, -1)).mean()


def rmi_terms(
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


def combine_terms(pixel: Array, region: Array, *, weight: Float[ArrayLike, ""], combine: str) -> Array:
    return weight * pixel + (1 - weight) * region if combine == "convex" else pixel + weight * region


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}; expected {' or '.join(choices)}.")
