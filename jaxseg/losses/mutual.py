"""Mutual learning: what a network is told by its peers' predictions. Zhang et al. (CVPR 2018, arXiv 1706.00384).

In: logits f32 [b, h, w, c] of a network and of one of its peers. Out: the divergence of single pixels, unreduced, and
its mean. The peer's logits are a constant: no gradient reaches them.

form="released" cannot be checked against a current PyTorch as it is: `KLDivLoss` is NaN there where a target is negative,
as raw logits are (from 1.13 on: its xlogy(z, z) has log z). python -m scripts.checks.mutual_parity shows it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from jaxseg.config import choices_of
from jaxseg.losses.arguments import refuse_one_channel
from jaxseg.ops import promote_to_float32, valid_pixels

FORMS = choices_of("mutual.form")
PIXELS = choices_of("mutual.pixels")


@functools.partial(jax.jit, static_argnames=("pixels", "form"))
def mutual_kl(
    logits: Float[ArrayLike, "b h w c"],
    peer_logits: Float[ArrayLike, "..."],  # shapes are checked below, with a sentence
    label: Integer[ArrayLike, "..."],
    *,
    pixels: str = "all",
    form: str = "kl",
    temperature: Float[ArrayLike, ""] = 1.0,
) -> Float[Array, ""]:
    """KL(p_peer || p_own), mean over pixels, in nats: equation 2 of arXiv 1706.00384, softmax over the classes.

    Args:
      logits: of the network that learns, any float; arithmetic is in float32 or wider. Differentiable in them alone.
      peer_logits: of the peer, of the same shape.
      label: int [b, h, w]; what is not in 0..c-1 (255, say) is void.
      pixels: which are averaged over, "all" or "valid", those that are not void (0 where there is none).
      form: "kl" or "released"; see `divergence`.
      temperature: T of `divergence`.

    Returns:
      A scalar.

    Raises:
      ValueError: while tracing, for an unknown choice, one channel, or shapes that do not fit.

    >>> logits = jnp.log(jnp.array([[0.5, 0.5]])).reshape(1, 1, 1, 2)
    >>> peer = jnp.log(jnp.array([[0.25, 0.75]])).reshape(1, 1, 1, 2)
    >>> round(float(mutual_kl(logits, peer, jnp.zeros((1, 1, 1), int))), 4)  # ¼ ln ½ + ¾ ln 1½
    0.1308
    """
    for name, value, choices in (("pixels", pixels, PIXELS), ("form", form, FORMS)):
        if value not in choices:
            raise ValueError(f"{name}={value!r}; expected {' or '.join(choices)}.")
    logits = jnp.asarray(logits)
    peer_logits = jnp.asarray(peer_logits)
    label = jnp.asarray(label)
    if logits.shape != peer_logits.shape or label.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits {logits.shape}, peer_logits {peer_logits.shape}, label {label.shape};"
            " expected [b, h, w, c] twice and [b, h, w]."
        )
    refuse_one_channel(logits.shape)
    mask = valid_pixels(label, logits.shape[-1]) if pixels == "valid" else jnp.ones(label.shape, bool)
    total = divergence(logits, peer_logits, mask, form=form, temperature=temperature).sum()
    return total / jnp.maximum(mask.sum(dtype=total.dtype), 1)


def divergence(
    logits: Float[ArrayLike, "b h w c"],
    peer_logits: Float[ArrayLike, "b h w c"],
    mask: Bool[ArrayLike, "b h w"],
    *,
    form: str,
    temperature: Float[ArrayLike, ""],
) -> Float[Array, "b h w"]:
    """What the peer's prediction tells of every pixel; 0 outside `mask`.

    Args:
      logits: of the network that learns.
      peer_logits: of its peer, held constant.
      mask: the pixels that count.
      form: "kl": T² sum_k p_k (log p_k - log q_k), p the peer's, q the own softmax of logits / T; T² keeps the
        gradient's size (Hinton et al., arXiv 1503.02531, section 2). "released": what the study's released code computes
        in its place, `KLDivLoss` with the peer's *logits* z as target, mean over classes, terms with z ≤ 0 being 0:
        1/c sum_k [z_k > 0] z_k (log z_k - log q_k). It has no temperature. So did PyTorch up to 1.12 (the authors pin
        1.11); from 1.13 on a z < 0 gives NaN.
      temperature: T.

    Returns:
      Nats per pixel.
    """
    logits = promote_to_float32(logits)
    peer_logits = lax.stop_gradient(promote_to_float32(peer_logits))
    if form == "released":
        positive = peer_logits > 0
        log_z = jnp.log(jnp.where(positive, peer_logits, 1))
        terms = jnp.where(positive, peer_logits * (log_z - jax.nn.log_softmax(logits)), 0)
        return jnp.where(mask, terms.mean(-1), 0)
    log_q = jax.nn.log_softmax(logits / temperature)
    log_p = jax.nn.log_softmax(peer_logits / temperature)
    terms = jnp.exp(log_p) * (log_p - log_q)
    return jnp.where(mask, temperature**2 * terms.sum(-1), 0)
