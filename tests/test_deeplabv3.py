"""DeepLabV3 against PyTorch's recorded results, its layers against independent formulas, its weights tensor by tensor."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import lax

from jaxseg.config import default
from jaxseg.errors import InputError
from jaxseg.losses.pixel import cross_entropy
from jaxseg.models import DeepLabV3, UNet
from jaxseg.models.factory import NORMALIZE, fresh_variables, load_variables, make_model
from jaxseg.models.layers import convolve, max_pool_3x3
from jaxseg.models.resnet import DEPTHS, plan
from jaxseg.models.torch_weights import (
    deeplabv3_from_torch,
    deeplabv3_tensor_maps,
    deeplabv3_to_torch,
    flatten,
    load_deeplabv3,
    load_own_names,
    unet_from_torch,
)
from jaxseg.models.weights_io import read_state_dict
from jaxseg.ops import resize_bilinear

SMALL = {"num_classes": 3, "backbone": "resnet14", "stem_features": 4}


@pytest.mark.parametrize(
    ("fields", "count"),
    [  # torchvision's documentation: 42,004,074 and 60,996,202 with the auxiliary head at 21 classes
        ({"backbone": "resnet50"}, 39_638_869),
        ({"backbone": "resnet50", "auxiliary": True}, 42_004_074),
        ({"backbone": "resnet101", "auxiliary": True}, 60_996_202),
    ],
)
def test_parameter_count(fields, count):
    shapes = jax.eval_shape(DeepLabV3(21, **fields).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count


@pytest.fixture(scope="module")
def recorded(golden):
    return golden("deeplabv3_r50_c21")


def test_predictions_are_pytorchs(recorded):
    image = recorded["image_nchw"].transpose(0, 2, 3, 1)
    model, variables = DeepLabV3(21, auxiliary=True), deeplabv3_from_torch(recorded["weights"], auxiliary=True)
    apply = jax.jit(functools.partial(model.apply, mutable=["auxiliary"]))
    logits, extra = apply(variables, image)
    for found, name in ((logits, "eval_logits_nchw"), (extra["auxiliary"]["logits"][0], "eval_aux_logits_nchw")):
        expected = recorded[name].transpose(0, 2, 3, 1)
        assert np.abs(found - expected).max() < 1e-4 * expected.std(), name
    without = deeplabv3_from_torch(recorded["weights"])
    assert "auxiliary" not in without["params"]
    assert np.array_equal(jax.jit(DeepLabV3(21).apply)(without, image), logits)


def test_a_training_pass_is_pytorchs(recorded):
    """Logits within 1e-3 of their deviation, the loss within 1e-5, gradient norms within 1e-2.

    The network with such weights is ill-conditioned: flipping the last bit of some pixels of the image moves single
    gradient norms by 0.5 to 1.3 %, all of them taken together by 1e-3 to 6e-3, and against the same pass in float64 the
    recorded float32 norms are off by 2.4e-3 together, 1.0e-2 singly (ours: 3.8e-3 and 0.9e-2).
    """
    image, label = recorded["image_nchw"].transpose(0, 2, 3, 1), recorded["labels"].astype(int)
    valid, variables = label != 255, deeplabv3_from_torch(recorded["weights"])
    model = DeepLabV3(21, dropout=0.0)

    def loss(params):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, _ = model.apply(inputs, image, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, label, valid).sum() / valid.sum(), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    expected = recorded["train_logits_no_dropout_nchw"].transpose(0, 2, 3, 1)
    assert np.abs(logits - expected).max() < 1e-3 * expected.std()
    np.testing.assert_allclose(value, recorded["train_loss"], rtol=1e-5)
    grads = traverse_util.flatten_dict(grads)
    moves = [m for m in deeplabv3_tensor_maps((3, 4, 6, 3), auxiliary=False) if m.collection == "params"]
    ours = np.array([np.linalg.norm(grads[m.path]) for m in moves])
    theirs = np.array([recorded["grad_norms"][m.torch_name] for m in moves])
    assert len(theirs) == len(recorded["grad_norms"])
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1.5e-2)


@pytest.mark.parametrize(("backbone", "output_stride"), [("resnet14", 8), ("resnet14", 16), ("resnet50", 8)])
def test_formulas_are_pytorchs_in_float64(backbone, output_stride):
    """Where PyTorch is installed: a training pass of narrow networks in float64 on both sides, where rounding hides nothing."""
    torch = pytest.importorskip("torch")
    from scripts.torch_reference.deeplabv3 import TorchDeepLabV3

    torch.manual_seed(0)
    theirs = TorchDeepLabV3(3, backbone, 4, output_stride, dropout=0.0).double()
    rng = np.random.default_rng(0)
    image, label = rng.random((2, 65, 97, 3)), rng.integers(3, size=(2, 65, 97))
    state_dict = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    logits = theirs(torch.tensor(image).permute(0, 3, 1, 2))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(label))
    loss.backward()
    with jax.enable_x64(True):
        moved = deeplabv3_from_torch(state_dict)
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), moved)
        ours = DeepLabV3(3, backbone, 4, output_stride, dropout=0.0, dtype=jnp.float64)

        def compute(params):
            inputs = {"params": params, "batch_stats": variables["batch_stats"]}
            found, _ = ours.apply(inputs, jnp.asarray(image), train=True, mutable=["batch_stats"])
            return cross_entropy(found, label, np.ones(label.shape, bool)).mean(), found

        (value, found), grads = jax.jit(jax.value_and_grad(compute, has_aux=True))(variables["params"])
    np.testing.assert_allclose(value, loss.item(), rtol=1e-9)
    np.testing.assert_allclose(found, logits.detach().permute(0, 2, 3, 1), rtol=1e-7, atol=1e-8)
    grads, parameters = traverse_util.flatten_dict(grads), dict(theirs.named_parameters())
    for m in deeplabv3_tensor_maps(DEPTHS[backbone], auxiliary=False):
        if m.collection == "params":
            wanted = parameters[m.torch_name].grad.numpy()
            wanted = wanted.transpose(m.axes) if m.axes else wanted
            assert np.linalg.norm(np.asarray(grads[m.path]) - wanted) < 1e-6 * np.linalg.norm(wanted) + 1e-12, (
                m.torch_name
            )


# ---- Layers


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [  # torchvision's replace_stride_with_dilation: (False, True, True), (False, False, True), none
        (8, [(3, 1, (1, 1)), (4, 2, (1, 1)), (6, 1, (1, 2)), (3, 1, (2, 4))]),
        (16, [(3, 1, (1, 1)), (4, 2, (1, 1)), (6, 2, (1, 1)), (3, 1, (1, 2))]),
        (32, [(3, 1, (1, 1)), (4, 2, (1, 1)), (6, 2, (1, 1)), (3, 2, (1, 1))]),
    ],
)
def test_strides_and_dilations_are_torchvisions(output_stride, expected):
    assert plan("resnet50", output_stride) == expected


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


# ---- The networks' options


def small_variables(**fields):
    model = DeepLabV3(**(SMALL | fields))
    return jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))


def test_output_stride_16_halves_the_maps():
    image = jnp.asarray(np.random.default_rng(0).random((1, 33, 47, 3)), jnp.float32)
    variables = small_variables()
    shapes = {}
    for stride in (8, 16):
        model = DeepLabV3(**SMALL, output_stride=stride)
        apply = functools.partial(
            model.apply, capture_intermediates=lambda m, _: m.name == "aspp", mutable="intermediates"
        )
        logits, seen = jax.eval_shape(apply, variables, image)
        assert logits.shape == (1, 33, 47, 3)
        shapes[stride] = seen["intermediates"]["aspp"]["__call__"][0].shape
    assert shapes == {8: (1, 5, 6, 16), 16: (1, 3, 3, 16)}


@pytest.mark.parametrize("network", ["unet", "deeplabv3"])
def test_recomputation_changes_nothing(network):
    """Logits, statistics and gradients with and without `remat`; the dropout mask is the same one."""
    image = jnp.asarray(np.random.default_rng(0).random((2, 32, 32, 3)), jnp.float32)
    build = functools.partial(DeepLabV3, **SMALL) if network == "deeplabv3" else functools.partial(UNet, 3, 4)
    variables = jax.jit(build().init)(jax.random.key(0), image)

    def loss(params, remat):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        rngs = {"dropout": jax.random.key(7)}
        logits, new = build(remat=remat).apply(inputs, image, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.square(logits).mean(), new

    compute = functools.partial(jax.value_and_grad(loss, has_aux=True), variables["params"])
    assert "remat" not in str(jax.make_jaxpr(functools.partial(compute, False))())
    assert "remat" in str(jax.make_jaxpr(functools.partial(compute, True))())
    plain, again = (jax.jit(functools.partial(compute, remat))() for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, again)


def products(jaxpr):
    """(precision, dtype of the maps) of every convolution and matrix product, those inside calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation.params["precision"], equation.invars[0].aval.dtype
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from products(getattr(inner, "jaxpr", inner))


def test_bfloat16_computes_low_and_keeps_float32():
    image = jnp.ones((2, 32, 32, 3)) * 0.3
    model, variables = DeepLabV3(**SMALL, dtype=jnp.bfloat16, auxiliary=True), small_variables(auxiliary=True)

    def apply(variables, image):
        return model.apply(
            variables, image, train=True, mutable=["batch_stats", "auxiliary"], rngs={"dropout": jax.random.key(0)}
        )

    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(apply, variables, image))} == {jnp.dtype("float32")}
    with jax.default_matmul_precision("default"):  # as outside the tests
        found = list(products(jax.make_jaxpr(apply)(variables, image).jaxpr))
    is_full = [precision == (lax.Precision.HIGHEST, lax.Precision.HIGHEST) for precision, _ in found]
    assert [dtype for (_, dtype), full in zip(found, is_full, strict=True) if full] == [
        "float32"
    ] * 4  # two heads, two axes
    assert {dtype for (_, dtype), full in zip(found, is_full, strict=True) if not full} == {jnp.dtype("bfloat16")}
    assert len(found) > 24


@pytest.mark.usefixtures("four_devices")
def test_batch_norm_is_synchronised_everywhere():
    """Statistics of a training pass on four devices are those of one, in every layer; then the logits are, too."""
    image = jnp.asarray(np.random.default_rng(0).random((8, 32, 32, 3)), jnp.float32)
    fields = SMALL | {"auxiliary": True, "dropout": 0.0}
    variables = small_variables(auxiliary=True)

    def apply(image, axis_name=None):
        model = DeepLabV3(**fields, axis_name=axis_name)
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)

    logits, stats = jax.jit(apply)(image)
    parted = jax.pmap(functools.partial(apply, axis_name="batch"), axis_name="batch")
    four_logits, four_stats = parted(image.reshape(4, 2, 32, 32, 3))
    np.testing.assert_allclose(four_logits.reshape(logits.shape), logits, atol=1e-3)
    assert set(stats["batch_stats"]) == {"backbone", "aspp", "conv", "auxiliary"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, rtol=1e-3, atol=1e-5), four_stats, stats)


def test_normalisation_is_of_the_model():
    """torchvision's mean and std for its weights; the batch stays in [0, 1]."""
    image = jnp.asarray(np.random.default_rng(0).random((1, 32, 32, 3)), jnp.float32)
    mean, std = NORMALIZE["imagenet"]
    assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    config = default()
    for network in ("unet", "deeplabv3"):
        config.model.update({"name": network, "normalize": "imagenet", "stem_features": 4, "features": 4})
        model = make_model(config.model, num_classes=3, axis_name=None)
        config.model.normalize = "none"
        plain = make_model(config.model, num_classes=3, axis_name=None)
        variables = jax.jit(plain.init)(jax.random.key(0), image)
        expected = jax.jit(plain.apply)(variables, (image - jnp.array(mean)) / jnp.array(std))
        np.testing.assert_allclose(jax.jit(model.apply)(variables, image), expected, rtol=1e-4, atol=1e-5)


# ---- Weights


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(small_variables(auxiliary=True))


@pytest.fixture
def state_dict(variables):
    """The state dict that PyTorch would hold for `variables`: convolutions back to [out, in, h, w]."""
    result = {}
    for move in deeplabv3_tensor_maps((1, 1, 1, 1), auxiliary=True):
        leaf = functools.reduce(lambda tree, key: tree[key], move.path, variables[move.collection])
        result[move.torch_name] = leaf.transpose(3, 2, 0, 1) if move.axes else leaf
    result["backbone.bn1.num_batches_tracked"] = np.int64(3)
    return result


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def without_auxiliary(variables):
    return {key: {k: v for k, v in tree.items() if k != "auxiliary"} for key, tree in variables.items()}


def trained(variables):
    return {key: variables[key] for key in ("params", "batch_stats")}


def test_round_trip(state_dict, variables):
    assert equal(deeplabv3_from_torch(state_dict, auxiliary=True), trained(variables))
    assert equal(deeplabv3_from_torch(state_dict), without_auxiliary(trained(variables)))


def test_back_to_pytorch_is_the_state_dict(state_dict, variables):
    """With and without the auxiliary head; a counter at 0 for every BatchNorm."""
    del state_dict["backbone.bn1.num_batches_tracked"]
    for auxiliary, given in ((True, variables), (False, without_auxiliary(trained(variables)))):
        made = deeplabv3_to_torch(given)
        counters = {name for name in made if name.endswith("num_batches_tracked")}
        wanted = {name for name in state_dict if auxiliary or not name.startswith("aux_classifier.")}
        assert made.keys() - counters == wanted
        assert all(np.array_equal(made[name], state_dict[name]) for name in wanted)
        assert counters == {
            name.replace("running_var", "num_batches_tracked") for name in wanted if name.endswith("running_var")
        }


def test_back_to_pytorch_is_what_torchvision_recorded(recorded):
    """All 370 names, shapes and values of torchvision's deeplabv3_resnet50."""
    weights = recorded["weights"]
    made = deeplabv3_to_torch(deeplabv3_from_torch(weights, auxiliary=True))
    assert made.keys() == weights.keys()
    assert len(made) == 370
    assert all(np.array_equal(made[name], weights[name]) for name in weights)


def test_own_names_in_parts(variables):
    """Of a file with an auxiliary head into a network without one, and the backbone alone."""
    arrays, plain = flatten(variables), without_auxiliary(trained(variables))
    other = jax.tree.map(np.zeros_like, plain)
    assert equal(load_own_names(arrays, target=other)[0], plain)
    found = load_own_names(arrays, target=other, parts="backbone")[0]
    assert equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert equal(found["batch_stats"]["backbone"], variables["batch_stats"]["backbone"])
    assert equal(found["params"]["aspp"], other["params"]["aspp"])
    assert equal(found["params"]["head"], other["params"]["head"])
    with pytest.raises(InputError, match=r"missing: batch_stats/auxiliary/conv/norm/mean"):
        load_own_names(flatten(plain), target=trained(variables))


def test_names_and_shapes_are_torchvisions(state_dict):
    assert state_dict["backbone.layer1.0.downsample.0.weight"].shape == (16, 4, 1, 1)  # out, in, h, w
    assert state_dict["classifier.0.convs.4.1.weight"].shape == (16, 128, 1, 1)
    assert state_dict["classifier.4.weight"].shape == (3, 16, 1, 1)
    assert state_dict["aux_classifier.4.weight"].shape == (3, 16, 1, 1)


def test_a_fresh_head_for_other_classes(state_dict, variables):
    target = trained(
        jax.device_get(
            jax.jit(DeepLabV3(**SMALL | {"num_classes": 7}).init)(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))
        )
    )
    found, report = load_deeplabv3(state_dict, target=target, parts="all_but_head")
    assert equal(found["params"]["head"], target["params"]["head"])
    assert equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert equal(found["params"]["conv"], variables["params"]["conv"])
    assert report.fresh == ("params/head/kernel", "params/head/bias")
    assert "backbone.conv1.weight [4, 3, 7, 7] -> params/backbone/stem/kernel" in report.loaded
    assert "classifier.4.weight [3, 16, 1, 1]" in report.dropped
    assert "aux_classifier.0.weight [16, 64, 3, 3]" in report.dropped
    assert len(report.lines()) == len(state_dict) + 2
    with pytest.raises(
        InputError, match=r"classifier.4.weight: \(1, 1, 16, 3\) .* where the network has \(1, 1, 16, 7\)"
    ):
        deeplabv3_from_torch(state_dict, target=target)


def test_a_backbone_of_an_imagenet_resnet(state_dict, variables):
    """Bare names and its classifier `fc`, as torchvision's resnet50 has them; everything else is the target's."""
    resnet = {k.removeprefix("backbone."): v for k, v in state_dict.items() if k.startswith("backbone.")}
    resnet |= {"fc.weight": np.zeros((1000, 128), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    target = trained(jax.device_get(jax.jit(DeepLabV3(**SMALL).init)(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))))
    found = deeplabv3_from_torch(resnet, target=target, parts="backbone")
    assert equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert equal(found["batch_stats"]["backbone"], variables["batch_stats"]["backbone"])
    assert equal(found["params"]["aspp"], target["params"]["aspp"])
    whole = deeplabv3_from_torch(state_dict, target=target, parts="backbone")  # or of a DeepLabV3's file
    assert equal(whole, found)


def test_every_mistake_is_named(state_dict, variables):
    target = without_auxiliary(trained(variables))
    renamed = dict(state_dict)
    renamed["extra.weight"] = renamed.pop("backbone.layer2.0.conv2.weight")
    with pytest.raises(InputError, match=r"missing: backbone.layer2.0.conv2.weight; left over: extra.weight"):
        deeplabv3_from_torch(renamed)
    wrong = state_dict | {"backbone.bn1.weight": np.zeros(5, np.float32)}
    with pytest.raises(InputError, match=r"backbone.bn1.weight: \(5,\) .* where the network has \(4,\)"):
        deeplabv3_from_torch(wrong)
    with pytest.raises(InputError, match="these weights are not those of a torchvision DeepLabV3: missing: "):
        deeplabv3_from_torch({"conv.weight": np.zeros((3, 4, 1, 1))}, target=target)
    with pytest.raises(InputError, match="these weights are not those of the study's U-Net: missing: "):
        unet_from_torch(state_dict)
    with pytest.raises(InputError, match="parts='head'; expected all or all_but_head or backbone"):
        deeplabv3_from_torch(state_dict, parts="head")
    for from_torch in (deeplabv3_from_torch, unet_from_torch):
        with pytest.raises(InputError, match="parts='all_but_head' leaves tensors to be taken from target"):
            from_torch(state_dict, parts="all_but_head")


def test_another_depth_is_named(state_dict):
    """ResNet-14's file for a ResNet-50 and back."""
    target = jax.eval_shape(DeepLabV3(3, "resnet50", 4).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match=r"missing: backbone.layer1.1.bn1.bias"):
        deeplabv3_from_torch(state_dict, target=target)


def test_safetensors_in_training(state_dict, variables, tmp_path):
    from safetensors.numpy import save_file

    arrays = {k: np.ascontiguousarray(v) for k, v in state_dict.items() if np.ndim(v)}
    save_file(arrays, tmp_path / "deeplabv3.safetensors")
    assert read_state_dict(tmp_path / "deeplabv3.safetensors").keys() == arrays.keys()
    config = default()
    config.model.update({"name": "deeplabv3", "backbone": "resnet14", "stem_features": 4})
    config.model.init_from = str(tmp_path / "deeplabv3.safetensors")
    model = make_model(config.model, num_classes=3, axis_name=None)
    assert equal(
        load_variables(config.model, target=fresh_variables(model, seed=0))[0], without_auxiliary(trained(variables))
    )
