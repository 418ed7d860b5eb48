"""Pixel losses against float64 oracles, under masks, under jit, with gradients; reductions over parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.losses.pixel import binary_cross_entropy, cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 5, 6, 4)).astype(np.float32)
LABEL = np.where(RNG.random((2, 5, 6)) < 0.3, 255, RNG.integers(0, 4, (2, 5, 6)))
VALID = LABEL != 255


def oracle(kind):
    """Written from the definitions, in float64, pixel by pixel."""
    out = np.zeros(LABEL.shape)
    for index in np.ndindex(LABEL.shape):
        x, k = LOGITS[index].astype(np.float64), LABEL[index]
        if k == 255:
            continue
        if kind == "softmax":
            out[index] = -np.log(np.exp(x[k]) / np.exp(x).sum())
        else:
            p = 1 / (1 + np.exp(-x))
            out[index] = -np.log(p[k]) - sum(np.log(1 - p[j]) for j in range(len(x)) if j != k)
    return out


CASES = [("softmax", cross_entropy), ("sigmoid", binary_cross_entropy)]


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_against_float64(kind, loss):
    np.testing.assert_allclose(loss(LOGITS, LABEL, VALID), oracle(kind), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, LABEL, VALID), loss(LOGITS, LABEL, VALID), rtol=1e-6)


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_masking_is_slicing(kind, loss):
    del kind
    masked = loss(LOGITS, LABEL, VALID)
    sliced = loss(LOGITS[VALID][None, None], LABEL[VALID][None, None], VALID[VALID][None, None])
    np.testing.assert_allclose(masked[VALID], sliced[0, 0], rtol=1e-6)
    assert (masked[~VALID] == 0).all()


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_void_pixels_have_no_gradient_whatever_their_logits(kind, loss):
    del kind
    wild = np.where(VALID[..., None], LOGITS, np.float32(3e38))
    grad = jax.grad(lambda x: loss(x, LABEL, VALID).sum())(jnp.asarray(wild))
    expected = jax.grad(lambda x: loss(x, LABEL, VALID).sum())(jnp.asarray(LOGITS))
    assert (grad[~VALID] == 0).all()
    np.testing.assert_allclose(grad[VALID], expected[VALID], rtol=1e-6)


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_gradients(kind, loss):
    del kind
    check_grads(lambda x: loss(x, LABEL, VALID), (LOGITS,), order=1, modes=("rev",), atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_extreme_logits_have_known_values(kind, loss):
    """Right by 2e4: 0. Wrong by 2e4: 2e4 (softmax); 1e4 for each of the two wrong classes (sigmoid)."""
    right = jnp.array([1e4, -1e4, -1e4])[None, None, None]
    at = (right, jnp.array([[[0]]]), jnp.array([[[True]]]))
    assert loss(*at).item() == 0
    assert loss(at[0], jnp.array([[[1]]]), at[2]).item() == 2e4
    assert kind in ("softmax", "sigmoid")
