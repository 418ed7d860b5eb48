"""Mutual learning: what a network is told by its peers' predictions. Zhang et al. (CVPR 2018, arXiv 1706.00384).

In: logits f32 [b, h, w, c] of a network and of one of its peers. Out: the divergence of single pixels, unreduced, and
its mean. The peer's logits are a constant: no gradient reaches them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from jaxseg.config import choices_of

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

    logits: any float, arithmetic in float32 or wider. label: class of every pixel, what is not in 0..c-1 (255, say) is
    void. pixels: "all", or "valid", those that are not void (0 where there is none). temperature, form: `divergence`.
    Differentiable in `logits` alone. Raises ValueError while tracing.
    """
    for name, value, choices in (("pixels", pixels, PIXELS), ("form", form, FORMS)):
        if value not in choices:
            raise ValueError(f"{name}={value!r}; expected {' or '.join(choices)}.")
    logits, peer_logits, label = jnp.asarray(logits), jnp.asarray(peer_logits), jnp.asarray(label)
    if logits.shape != peer_logits.shape or label.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits {logits.shape}, peer_logits {peer_logits.shape}, label {label.shape};"
            " expected [b, h, w, c] twice and [b, h, w]."
        )
    counted = (label >= 0) & (label < logits.shape[-1]) if pixels == "valid" else jnp.ones(label.shape, bool)
    total = divergence(logits, peer_logits, counted, form=form, temperature=temperature).sum()
    return total / jnp.maximum(counted.sum(), 1)


def divergence(
    logits: Float[ArrayLike, "b h w c"],
    peer_logits: Float[ArrayLike, "b h w c"],
    counted: Bool[ArrayLike, "b h w"],
    *,
    form: str,
    temperature: Float[ArrayLike, ""],
) -> Float[Array, "b h w"]:
    """Of every pixel, 0 where not `counted`; softmax of logits / T.

    form "kl": T² sum_k p_k (log p_k - log q_k), p the peer's, q the own distribution; T² keeps the gradient's size
    (Hinton et al., arXiv 1503.02531, section 2). "released": what the study's released code computes in its place,
    `KLDivLoss` with the peer's *logits* z as target, mean over classes, terms with z ≤ 0 being 0:
    1/c sum_k [z_k > 0] z_k (log z_k - log q_k). It has no temperature.
    """
    wide = jnp.promote_types(jnp.result_type(logits, peer_logits), jnp.float32)
    logits, peer_logits = logits.astype(wide), lax.stop_gradient(peer_logits.astype(wide))
    if form == "released":
        positive = peer_logits > 0
        log_z = jnp.log(jnp.where(positive, peer_logits, 1))
        terms = jnp.where(positive, peer_logits * (log_z - jax.nn.log_softmax(logits)), 0)
        return jnp.where(counted, terms.mean(-1), 0)
    log_q, log_p = (jax.nn.log_softmax(x / temperature) for x in (logits, peer_logits))
    terms = jnp.exp(log_p) * (log_p - log_q)
    return jnp.where(counted, temperature**2 * terms.sum(-1), 0)
