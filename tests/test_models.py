"""Layers against independent formulas, the U-Net against PyTorch's recorded results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import lax

from jaxseg.losses.pixel import cross_entropy
from jaxseg.models import UNet
from jaxseg.models.layers import BatchNorm, ConvTranspose2x2
from jaxseg.models.torch_weights import unet_from_torch, unet_tensor_maps
from jaxseg.ops import max_pool


def parameters(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("num_classes", "features", "count"),
    [(21, 32, 7_763_701), (19, 32, 7_763_635), (21, 8, 486_733)],  # the study's network; the golden files' networks
)
def test_parameter_count(num_classes, features, count):
    shapes = jax.eval_shape(UNet(num_classes, features).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert parameters(shapes) == count


@pytest.mark.parametrize("name", ["unet_f8_c21", "unet_f32_c19"])
def test_unet_is_pytorchs(golden, name):
    recorded = golden(name)
    variables = unet_from_torch(recorded["weights"])
    model = UNet(recorded["meta"]["out_channels"], recorded["meta"]["init_features"])
    image, label = recorded["image_nchw"].transpose(0, 2, 3, 1), recorded["labels"].astype(int)
    valid = label != 255

    expected = recorded["eval_logits_nchw"].transpose(0, 2, 3, 1)
    assert np.abs(jax.jit(model.apply)(variables, image) - expected).max() < 1e-4 * expected.std()

    def loss(params):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updated = model.apply(inputs, image, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, label, valid).sum() / valid.sum(), (logits, updated["batch_stats"])

    (value, (logits, stats)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    expected = recorded["train_logits_nchw"].transpose(0, 2, 3, 1)
    assert np.abs(logits - expected).max() < 1e-3 * expected.std()
    np.testing.assert_allclose(value, recorded["train_loss"], rtol=1e-5)
    check_gradient_norms(traverse_util.flatten_dict(grads), recorded["grad_norms"])
    flat = traverse_util.flatten_dict(stats)
    for move in unet_tensor_maps():
        if move.collection == "batch_stats":
            expected = recorded["bn_after_one_step/" + move.torch_name.replace(".", "/")]
            np.testing.assert_allclose(flat[move.path], expected, atol=1e-5)


def check_gradient_norms(grads, recorded):
    """All norms as one vector within 1e-3, each within 5e-3.

    A single pre-activation so close to 0 that float32 rounding decides its ReLU moves the norms of some BatchNorm
    parameters by 1e-3 to 3.5e-3; in unet_f8_c21 it is PyTorch's own float32 that differs from float64, by 1.27e-3.
    """
    moves = [move for move in unet_tensor_maps() if move.collection == "params"]
    ours = np.array([np.linalg.norm(grads[move.path]) for move in moves])
    theirs = np.array([recorded[move.torch_name] for move in moves])
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)


def test_size_that_does_not_halve_four_times_is_refused():
    with pytest.raises(ValueError, match="height × width is 100×96; both must be multiples of 16"):
        jax.eval_shape(UNet(3, 4).init, jax.random.key(0), jnp.zeros((1, 100, 96, 3)))


def test_bfloat16_computes_low_and_keeps_float32():
    model, image = UNet(5, 4, dtype=jnp.bfloat16), jnp.ones((2, 32, 32, 3)) * 0.3
    variables = model.init(jax.random.key(0), image)
    logits, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
    assert {x.dtype for x in jax.tree.leaves((variables, logits, updated))} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda v: model.apply(v, image))(variables))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) == 19  # 9 blocks of two, and the head
    assert all("bf16[" in line for line in convolutions)
    full = UNet(5, 4).apply(variables, image, train=True, mutable=["batch_stats"])[0]
    assert 0 < np.abs(logits - full).max() < 0.1 * np.std(full) + 0.1


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
    np.testing.assert_allclose(layer.apply(variables, x), expected + bias, atol=1e-5)


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


def test_initial_weights_have_pytorchs_spread():
    """Conv2d: uniform in ±1/sqrt(fan_in); ConvTranspose2d takes 4 * out as fan_in."""
    params = UNet(21, 32).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    for kernel, fan_in in (
        (params["encoder2"]["conv2"]["kernel"], 9 * 64),
        (params["upconv3"]["kernel"], 4 * 128),
        (params["head"]["kernel"], 32),
    ):
        bound = 1 / np.sqrt(fan_in)
        assert 0.97 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.06)
