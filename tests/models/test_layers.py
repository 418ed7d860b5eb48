"""Layers against independent formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.models.layers import BatchNorm, ConvTranspose2x2, batch_moments, convolve


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


def moved_maps(offset):
    """Unit variance about `offset`, about another mean in each channel, image and middle row."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 7, 5)) + offset * (1 + np.arange(5)) + 0.1 * np.arange(4)[:, None, None, None]
    x[:, 3] += 2
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("offset", [0, 1e2, 1e4])
def test_batch_norm_far_from_zero(offset):
    """Values, statistics and gradients against float64. At 1e4 the mean of the last channel is 5e4, which
    rounds by up to 2e-3, and E[x^2] - E[x]^2 would have no correct digit."""
    x = moved_maps(offset)
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.uniform(0.5, 2, 5), jnp.float32) for name in ("scale", "bias")}
    g = rng.normal(size=x.shape).astype(np.float32)
    initial = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

    def apply(x, params):
        variables = {"params": params, "batch_stats": initial}
        y, updated = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    exact = np.asarray(x, np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    with jax.enable_x64(True):

        def formula(x, params):
            mean = x.mean((0, 1, 2), keepdims=True)
            normal = (x - mean) / jnp.sqrt(jnp.square(x - mean).mean((0, 1, 2), keepdims=True) + 1e-5)
            return normal * params["scale"][None, None, None] + params["bias"][None, None, None]

        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (x, params))
        expected, vjp = jax.vjp(formula, *wide)
        expected_grads = jax.tree.map(np.asarray, vjp(jnp.asarray(g, jnp.float64)))
    for compiled in (False, True):
        (y, stats), vjp = jax.vjp(jax.jit(apply) if compiled else apply, x, params)
        np.testing.assert_allclose(y, np.asarray(expected), atol=1e-5 + 4e-7 * offset)  # twice what the mean rounds by
        np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var * 168 / 167, rtol=1e-5)
        dx, of_params = vjp((jnp.asarray(g), jax.tree.map(jnp.zeros_like, stats)))
        np.testing.assert_allclose(dx, expected_grads[0], rtol=1e-4, atol=1e-4 + 5e-8 * offset)
        for (
            name,
            grad,
        ) in of_params.items():  # that of the scale is off by what the mean rounds by, times sum(g), here 8
            np.testing.assert_allclose(grad, expected_grads[1][name], rtol=1e-4, atol=1e-4 + 2e-6 * offset)


def test_statistics_where_the_middle_row_is_far_away():
    """The worst case of the shift: all rows but the middle one are equal, sqrt(h - 1) deviations away from it."""
    x = jnp.zeros((2, 225, 3, 1)).at[:, 112].set(100.0)
    mean, var = jax.jit(lambda x: batch_moments(x, None))(x)
    share = 1 / 225
    np.testing.assert_allclose(mean, [100 * share], rtol=1e-5)
    np.testing.assert_allclose(var, [100**2 * share * (1 - share)], rtol=1e-5)


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_batch_norm_over_four_devices_that_differ(offset):
    """Each device has an image with a mean of its own: one device with all images is the same, to what means round by."""
    x = moved_maps(offset)
    g = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)

    def apply(x, g, axis_name=None):
        def normalized(x):
            return BatchNorm(axis_name).apply(variables, x, train=True, mutable=["batch_stats"])

        y, vjp, stats = jax.vjp(normalized, x, has_aux=True)
        return y, *vjp(g), stats["batch_stats"]

    y, dx, stats = apply(x, g)
    parted = jax.pmap(lambda *xs: apply(*xs, "batch"), axis_name="batch")(x[:, None], g[:, None])
    np.testing.assert_allclose(parted[0][:, 0], y, atol=1e-5 + 5e-7 * offset)
    np.testing.assert_allclose(parted[1][:, 0], dx, atol=1e-5 + 5e-8 * offset)
    for device in range(4):
        jax.tree.map(lambda a, b, d=device: np.testing.assert_allclose(a[d], b, rtol=1e-6), parted[2], stats)


@pytest.mark.usefixtures("four_devices")
def test_batch_norm_exchanges_once_forward_and_once_backward():
    """Moments of all devices, of which there is one all-gather; two sums for the gradient, in one all-reduce."""
    x = jnp.zeros((4, 1, 3, 4, 5))
    variables = BatchNorm().init(jax.random.key(0), x[0], train=False)

    def forward(x):
        return BatchNorm("batch").apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def backward(x):
        return jax.vjp(forward, x)[1](x)

    counts = []
    for function in (forward, backward):
        text = jax.pmap(function, axis_name="batch").lower(x).as_text()
        counts.append([text.count(f'"stablehlo.{kind}"') for kind in ("all_gather", "all_reduce")])
    assert counts == [[1, 0], [1, 1]]


def test_batch_norm_keeps_no_map_but_its_input():
    """Of what the backward pass is handed, one array has the size of a map: in bfloat16 none is float32."""
    x = jnp.zeros((2, 6, 7, 5), jnp.bfloat16)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)

    def apply(x):
        return BatchNorm(dtype=jnp.bfloat16).apply(variables, x, train=True, mutable=["batch_stats"])[0]

    kept = [leaf for leaf in jax.tree.leaves(jax.vjp(apply, x)[1]) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


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
