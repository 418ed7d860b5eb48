"""Layers against independent formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.models.layers import BatchNorm, ConvTranspose2x2, convolve


def test_batch_norm_by_hand():
    """Biased variance normalises, unbiased variance n / (n - 1) is averaged, momentum 0.1: torch.nn.BatchNorm2d."""
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 4, 5)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updated = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var * 24 / 23, rtol=1e-5)


@pytest.mark.usefixtures("four_devices")
def test_batch_norm_is_the_same_over_four_devices():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (8, 3, 4, 5)), jnp.float32)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)

    def apply(x, axis_name=None):
        return BatchNorm(axis_name).apply(variables, x, train=True, mutable=["batch_stats"])

    y, stats = apply(x)
    parted, parted_stats = jax.pmap(lambda x: apply(x, "batch"), axis_name="batch")(x.reshape(4, 2, 3, 4, 5))
    np.testing.assert_allclose(parted.reshape(x.shape), y, atol=1e-5)
    for device in range(4):
        jax.tree.map(lambda a, b, d=device: np.testing.assert_allclose(a[d], b, rtol=1e-5), parted_stats, stats)


def test_transposed_convolution_against_lax():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    layer = ConvTranspose2x2(6)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    flipped = kernel[::-1, ::-1]  # lax correlates
    expected = lax.conv_general_dilated(
        x, flipped, (1, 1), ((1, 1), (1, 1)), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer.apply(variables, x), np.asarray(expected) + np.asarray(bias), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "by_taps"),
    [
        (3, 1, 1, False),
        (3, 2, 1, False),
        (7, 2, 1, False),
        (1, 1, 1, False),
        (1, 2, 1, False),
        (3, 1, 2, False),
        (3, 1, 4, True),
        (3, 1, 8, True),
        (3, 1, 12, True),
    ],
)
def test_convolution_against_lax(size, stride, dilation, by_taps):
    """Also where kernels reach beyond the image: 9×11 pixels against dilations to 12. Values and both gradients."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 9, 11, 3), (size, size, 3, 4)))
    pad = dilation * (size // 2)

    def reference(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    ours = functools.partial(convolve, stride=stride, dilation=dilation)
    assert ("conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, kernel))) == (by_taps or size == 1)
    (y, vjp), (expected, expected_vjp) = jax.vjp(ours, x, kernel), jax.vjp(reference, x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for found, wanted in zip(vjp(g), expected_vjp(g), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_convolution_in_bfloat16_sums_in_float32():
    """Nine ones and values of 2^-8 beside them: a sum rounded at every tap would lose them all."""
    x = jnp.full((1, 9, 9, 1), 1, jnp.bfloat16)
    kernel = jnp.full((3, 3, 1, 1), 2**-8, jnp.bfloat16).at[1, 1].set(1)
    y = convolve(x, kernel, stride=1, dilation=4)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 4, 4, 0]) == 1 + 8 * 2**-8
