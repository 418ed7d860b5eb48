"""Max pooling, sums and bilinear resizing against hand counts and XLA's own."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.models.layers import max_pool_3x3
from jaxseg.ops import max_pool, resize_bilinear, sum_pixels


def test_max_pool_sends_the_gradient_to_the_first_maximum():
    x = np.array([[1, 2, 5, 5], [2, 0, 5, 5], [0, 0, 3, 4], [0, 0, 7, 6]], np.float32)[None, :, :, None]
    x = jnp.asarray(x)
    y, vjp = jax.vjp(lambda x: max_pool(x, 2), x)
    assert y[0, :, :, 0].tolist() == [[2, 5], [0, 7]]
    (grad,) = vjp(jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None])
    assert grad[0, :, :, 0].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 4, 0]]


def test_max_pool_against_reduce_window():
    """Without ties the gradient is XLA's own."""
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * 6 * 8 * 3).reshape(2, 6, 8, 3), jnp.float32)
    g = np.random.default_rng(1).normal(size=(2, 3, 4, 3)).astype(np.float32)

    def reference(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    for ours, theirs in zip(jax.vjp(lambda x: max_pool(x, 2), x), jax.vjp(reference, x), strict=True):
        if callable(ours):
            ours, theirs = ours(g)[0], theirs(g)[0]
        assert np.array_equal(ours, theirs)


def test_max_pool_3x3_sends_the_gradient_to_the_first_maximum():
    """Windows around (0, 0) and (0, 2) both take the 5 at (0, 1), around (2, 0) that at (1, 0), around (2, 2) the first 0,
    at (1, 1): padding never wins, ties go to the first in row-major order, as in PyTorch."""
    x = jnp.asarray([[1, 5, 5, 0], [5, 0, 0, 0], [-1, -2, -3, -4], [-5, -6, -7, -8]], jnp.float32)[None, :, :, None]
    y, vjp = jax.vjp(max_pool_3x3, x)
    assert y[0, :, :, 0].tolist() == [[5, 5], [5, 0]]
    (grad,) = vjp(jnp.asarray([[1, 2], [3, 4]], jnp.float32)[None, :, :, None])
    assert grad[0, :, :, 0].tolist() == [[0, 3, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pool_3x3_is_linens_with_its_own_padding(dtype):
    """Values and gradients, ties included, odd and even sizes; in float32 padding ahead is folded into the pooling."""

    def linens(x):
        return flax.linen.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    for shape in ((2, 8, 6, 3), (1, 7, 9, 2)):
        x = jnp.asarray(np.random.default_rng(0).integers(-3, 3, shape), dtype)
        (y, vjp), (expected, expected_vjp) = jax.vjp(max_pool_3x3, x), jax.vjp(linens, x)
        assert np.array_equal(y, expected)
        g = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), dtype)
        assert np.array_equal(vjp(g)[0], expected_vjp(g)[0])
    if dtype == "float32":  # a CPU computes bfloat16 by way of float32, with conversions between
        compiled = jax.jit(max_pool_3x3).lower(x).compile().as_text()
        assert "pad=0_0x1_1x1_1x0_0" in compiled
        assert " pad(" not in compiled


def test_upsampling_by_hand():
    """Half-pixel centres, edges clamped: source position of output i is (i + ½) · in/out - ½; a loop in float64."""
    x, size = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32), (7, 13)
    expected = np.zeros((1, *size, 2))
    for i in range(size[0]):
        for j in range(size[1]):
            r, c = (np.clip((k + 0.5) * n / m - 0.5, 0, n - 1) for k, n, m in ((i, 3, 7), (j, 4, 13)))
            r0, c0 = int(r), int(c)
            r1, c1, a, b = min(r0 + 1, 2), min(c0 + 1, 3), r - r0, c - c0
            top, bottom = (x[0, k, c0] * (1 - b) + x[0, k, c1] * b for k in (r0, r1))
            expected[0, i, j] = top * (1 - a) + bottom * a
    np.testing.assert_allclose(resize_bilinear(x, size), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 24, 32), (1, 1, 1), (4, 64, 64, 3)])
def test_sums_over_pixels_are_accurate(shape):
    """To 5e-7 of float64; 2e-7 on the machine where it was written, and 9e-7 by `jnp.sum`."""
    for seed in range(4):
        x = np.random.default_rng(seed).gamma(2, 2, shape).astype(np.float32)
        exact = x.astype(np.float64).sum((0, 1, 2))
        np.testing.assert_allclose(jax.jit(sum_pixels)(x), exact, rtol=5e-7)
    np.testing.assert_array_equal(jax.grad(lambda x: sum_pixels(x).sum())(jnp.asarray(x)), np.ones(shape))
