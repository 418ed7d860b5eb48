"""RMI: the authors' numbers, a float64 oracle, float32 where the textbook formula is NaN, gradients, transformations."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.test_util import check_grads

from jaxseg.config import default
from jaxseg.config_checks import validate
from jaxseg.data.synthetic import render_scene
from jaxseg.errors import InputError
from jaxseg.labels import CITYSCAPES
from jaxseg.losses import pixel_and_rmi_loss
from jaxseg.losses.objective import make_loss
from jaxseg.losses.rmi import (
    ALPHA,
    MAX_RADIUS,
    PIVOT_OFFSET,
    RIDGE,
    centered,
    gram,
    map_in_groups,
    regions,
    rmi_and_gradient,
    rmi_loss,
    rmi_lower_bound,
    rmi_of_map,
    rmi_of_maps,
)
from jaxseg.losses.rmi_maps import POOLS, pooled_maps
from jaxseg.models import UNet
from tests import rmi_oracle
from tests.configs import changed

GOLDEN = [
    "rmi_avg3_r3_noisy", "rmi_interpolate3_r3_smooth", "rmi_max2_r5_random", "rmi_max3_r3_noisy", "rmi_max3_r3_smooth",
    "rmi_max4_r2_lambda_additive", "rmi_nopool_r3_noisy", "rmi_r1", "rmi_softmax_sigmoid",
]  # fmt: skip
ABSENT = np.log(np.sqrt(ALPHA) + PIVOT_OFFSET)  # -3.80: truth or residual 0, so M = 0


def random_case(hw=(31, 34), classes=4, scale=3.0, void=0.1, seed=0, images=2):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (images, *hw, classes)).astype(np.float32)
    label = rng.integers(0, classes, (images, *hw))
    return logits, np.where(rng.random(label.shape) < void, 255, label).astype(np.int32)


def smooth_case(hw, classes=3, confidence=4.0, seed=0):
    """Blocks of classes with straight edges, and a blurred prediction of them: what a network's output looks like."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, classes, (1, 2, 3)), np.ones((1, hw[0] // 2 + 1, hw[1] // 3 + 1), int))
    label = label[:, : hw[0], : hw[1]]
    logits = confidence * (2.0 * (label[..., None] == np.arange(classes)) - 1)
    for axis in (1, 2):
        kernel = np.exp(-((np.arange(-6, 7) / 3) ** 2) / 2)
        logits = np.apply_along_axis(np.convolve, axis, logits, kernel / kernel.sum(), mode="same")
    return logits.astype(np.float32), label.astype(np.int32)


def relative_norm(actual, expected):
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# ---- The authors' numbers


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_in_float32(golden, name):
    recorded = golden(name)
    meta = recorded["meta"]
    logits, label = recorded["logits_nchw"].transpose(0, 2, 3, 1), recorded["labels"]
    options = {key: meta[key] for key in ("radius", "pool", "pool_size")}
    value, gradient = jax.jit(jax.value_and_grad(lambda x: rmi_loss(x, label, **options)))(logits)
    np.testing.assert_allclose(value, recorded["rmi_term"], rtol=2e-6)
    assert relative_norm(gradient, recorded["rmi_grad_nchw"].transpose(0, 2, 3, 1)) < 2e-5

    pixel = {"forward_sigmoid": "sigmoid", "forward_softmax_sigmoid": "softmax"}[meta["forward"]]
    options |= {"weight": meta["weight_lambda"], "combine": "convex" if meta["lambda_way"] else "additive"}
    (value, terms), gradient = jax.jit(
        jax.value_and_grad(lambda x: pixel_and_rmi_loss(x, label, pixel=pixel, **options), has_aux=True)
    )(logits)
    np.testing.assert_allclose(value, recorded["loss"], rtol=2e-6)
    np.testing.assert_allclose(terms["pixel"], recorded["pixel_term"], rtol=2e-6)
    np.testing.assert_allclose(terms["rmi"], recorded["rmi_term"], rtol=2e-6)
    assert set(terms) == {"pixel", "rmi"}
    assert relative_norm(gradient, recorded["grad_nchw"].transpose(0, 2, 3, 1)) < 2e-5


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_in_float64(golden, name):
    """The recorded files are float32 in terms and gradients (2⁻²⁴ = 6e-8), and in the weights of interpolation."""
    recorded = golden(name)
    meta = recorded["meta"]
    pixel = {"forward_sigmoid": "sigmoid", "forward_softmax_sigmoid": "softmax"}[meta["forward"]]
    options = {key: meta[key] for key in ("radius", "pool", "pool_size")} | {"pixel": pixel, "weight": 0.0}
    with jax.enable_x64(True):
        logits = jnp.asarray(recorded["logits_nchw"].transpose(0, 2, 3, 1), jnp.float64)
        value, gradient = jax.jit(
            jax.value_and_grad(lambda x: pixel_and_rmi_loss(x, recorded["labels"], **options)[0])
        )(logits)
        assert value.dtype == gradient.dtype == jnp.float64
    np.testing.assert_allclose(value, recorded["rmi_term"], rtol=1.5e-7)
    tolerance = 5e-6 if meta["pool"] == "interpolate" else 5e-7
    assert relative_norm(gradient, recorded["rmi_grad_nchw"].transpose(0, 2, 3, 1)) < tolerance


# ---- The definition


@pytest.mark.parametrize("radius", range(1, 11))
def test_every_radius_against_the_definition(radius):
    logits, label = random_case(hw=(33, 37))
    expected = rmi_oracle.lower_bound(logits, label, radius=radius, pool="max", pool_size=2)
    actual = rmi_lower_bound(logits, label, radius=radius, pool="max", pool_size=2)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)
    with jax.enable_x64(True):
        exact = rmi_lower_bound(logits.astype(np.float64), label, radius=radius, pool="max", pool_size=2)
    np.testing.assert_allclose(exact, expected, rtol=1e-9)


@pytest.mark.parametrize(("pool", "pool_size"), [("max", 3), ("avg", 3), ("avg", 4), ("interpolate", 2), ("none", 9)])
def test_every_pool_against_the_definition(pool, pool_size):
    logits, label = random_case(hw=(29, 40))
    options = {"pool": pool, "pool_size": pool_size}
    expected = rmi_oracle.lower_bound(logits, label, **options)
    np.testing.assert_allclose(rmi_lower_bound(logits, label, **options), expected, rtol=2e-6, atol=1e-6)
    with jax.enable_x64(True):
        exact = rmi_lower_bound(logits.astype(np.float64), label, **options)
    np.testing.assert_allclose(exact, expected, rtol=1e-9)


def test_loss_is_the_mean_over_images_of_the_sum_over_classes():
    logits, label = random_case()
    np.testing.assert_allclose(
        rmi_loss(logits, label), rmi_oracle.lower_bound(logits, label).sum() / len(logits), rtol=2e-6
    )


def textbook(truth, prob, radius):
    """The paper's formula as it stands, in the precision of its arguments."""
    d = radius**2
    y, p = (regions(x, radius)[0] for x in (truth, prob))  # one segment of these small maps
    y, p = (x - x.mean(1, keepdims=True) for x in (y, p))
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    ridge = ALPHA * jnp.eye(d, dtype=prob.dtype)
    yp = multiply(y, p.T)
    m = multiply(y, y.T) - multiply(multiply(yp, jnp.linalg.inv(multiply(p, p.T) + ridge)), yp.T)
    return jnp.log(jnp.diagonal(jnp.linalg.cholesky(m + ridge)) + PIVOT_OFFSET).mean()


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_closed_form_gradient_is_that_of_the_textbook_formula(radius):
    """In float64, where the textbook formula can be differentiated; the closed form never differentiates a factor."""
    logits, label = random_case(hw=(20, 23), images=1)
    truth, prob = (label[0] == 1).astype(np.float64), rmi_oracle.sigmoid(logits[0, ..., 1])
    with jax.enable_x64(True):
        value, expected = jax.value_and_grad(textbook, argnums=1)(jnp.asarray(truth), jnp.asarray(prob), radius)
        truth, prob = jnp.asarray(truth)[None, None], jnp.asarray(prob)[None, None]
        ours, actual = jax.value_and_grad(lambda p: rmi_of_maps(truth, p, radius).sum())(prob)
    np.testing.assert_allclose(ours, value, rtol=1e-12)
    assert relative_norm(actual[0, 0], expected) < 1e-9


@pytest.mark.parametrize("pool", ["max", "avg", "interpolate", "none"])
def test_gradient_by_differences(pool):
    logits, label = random_case(hw=(9, 11), classes=3, scale=1.0)
    with jax.enable_x64(True):
        function = functools.partial(rmi_lower_bound, label=label, radius=2, pool=pool, pool_size=2)
        check_grads(function, (logits.astype(np.float64),), order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


# ---- float32 where the textbook formula fails


@pytest.mark.parametrize("confidence", [8.0, 30.0, 1e4])
def test_confident_predictions(confidence):
    """The textbook formula in float32 is NaN for such a map, and at 1e4 off by 7e-5 in float64; ours is within 2e-6."""
    _, label = smooth_case((90, 120))
    noise = np.random.default_rng(0).normal(0, 1, (1, 90, 120, 3))
    logits = np.where(label[..., None] == np.arange(3), confidence, -confidence) + noise
    logits = logits.astype(np.float32)
    truth, prob = jnp.asarray(label[0] == 1, jnp.float32), jax.nn.sigmoid(logits[0, ..., 1])
    assert jnp.isnan(textbook(truth, prob, 3))
    value, gradient = jax.value_and_grad(lambda x: rmi_loss(x, label, pool="none"))(logits)
    maps = [((label[0] == k).astype(float), rmi_oracle.sigmoid(logits[0, ..., k])) for k in range(3)]
    np.testing.assert_allclose(value, sum(rmi_oracle.stable_bound_of_maps(*m, 3) for m in maps), rtol=2e-6)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("hw", "radius"), [((120, 150), 2), ((120, 150), 3), ((120, 150), 5), ((224, 224), 5), ((60, 60), 10)], ids=str
)
def test_smooth_predictions_of_straight_edges(hw, radius):
    """Rows of Y are equal, rows of P nearly: both Gram matrices are singular to float32, and α far below its rounding.

    The paper's formula is off by 3e-5 here (radius 5) even in float64.
    """
    logits, label = smooth_case(hw)
    bounds = rmi_lower_bound(logits, label, radius=radius, pool="none")
    for k in range(3):
        prob = rmi_oracle.sigmoid(logits[0, ..., k])
        expected = rmi_oracle.stable_bound_of_maps((label[0] == k).astype(float), prob, radius)
        np.testing.assert_allclose(bounds[0, k], expected, atol=3e-6)
    gradient = jax.grad(lambda x: rmi_loss(x, label, radius=radius, pool="none"))(logits)
    with jax.enable_x64(True):
        exact = jax.grad(lambda x: rmi_loss(x, label, radius=radius, pool="none"))(logits.astype(np.float64))
    assert relative_norm(gradient, exact) < 1e-4


@pytest.mark.parametrize("radius", [2, 3, 5, 8])
def test_ridge_covers_eight_times_the_rounding_of_gram_matrices(radius):
    """Discs with a soft border, and blocks: of these, ramps and waves, blocks are off the most, 600 ε at radius 8.

    An error E, of rows scaled to length 1, makes a singular Gram matrix indefinite by its least eigenvalue.
    """
    y, x = np.mgrid[:224, :224]
    discs = [
        1 / (1 + np.exp((np.hypot(y - centre, x - 80) - 70) / soft)) for centre, soft in ((20, 1), (112, 5), (200, 20))
    ]
    blocks = [(y // side + x // side) % 2 for side in (8, 112)]
    for prob in (*discs, *blocks):
        rows = centered(regions(jnp.asarray(prob, jnp.float32), radius), (225 - radius) ** 2)
        rows = rows / jnp.linalg.norm(rows, axis=(0, 2), keepdims=True)
        exact = np.einsum("srk,sqk->rq", np.float64(rows), np.float64(rows), optimize=True)
        for computed in (gram(rows), jax.vmap(gram)(rows[None])[0]):
            least = np.linalg.eigvalsh(np.float64(computed) - exact)[0]
            assert -least < RIDGE * np.finfo(np.float32).eps / 8


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_stacked_maps_without_jit_give_what_one_by_one_gives(radius):
    """Products of stacked matrices are summed in another order, with more rounding."""
    logits, label = smooth_case((120, 150))
    maps = tuple(x[0] for x in pooled_maps(logits, label, label < 3, pool="none", pool_size=1))
    of_map = functools.partial(rmi_of_map, radius=radius)
    stacked = jax.vmap(of_map)(*maps)
    one_by_one = jax.jit(lambda maps: lax.map(lambda m: of_map(*m), maps))(maps)
    np.testing.assert_allclose(stacked[0], one_by_one[0], atol=3e-6)
    assert relative_norm(stacked[1], one_by_one[1]) < 1e-3


def test_constant_predictions_and_straight_edges_at_full_size():
    """Half of a 512×1024 image is class 0. P = 0; rows of Y fall into 3 groups that differ in a column of 510 pixels.

    Y is the step function of the column, so Σyy of its 3 shifts is known; M = Σyy, each shift 3 times over.
    """
    label = jnp.broadcast_to(jnp.arange(1024) >= 512, (1, 512, 1024)).astype(jnp.int32)
    value, gradient = jax.value_and_grad(lambda x: rmi_lower_bound(x, label, pool="none")[0, 1])(
        jnp.full((1, 512, 1024, 2), 0.7)
    )
    steps = np.array([(np.arange(1022) + shift >= 512).astype(float) for shift in range(3)])
    steps -= steps.mean(1, keepdims=True)
    covariance = np.kron(np.ones((3, 3)), 510 * steps @ steps.T)
    eigenvalues = np.linalg.eigvalsh(covariance).clip(0) + ALPHA
    # The offset on the six pivots near √α is all that the authors add.
    np.testing.assert_allclose(value, np.log(eigenvalues).sum() / 18, atol=1e-5)
    assert jnp.abs(gradient).max() < 1e-8


@pytest.mark.parametrize("radius", [1, 3, 10])
@pytest.mark.parametrize("fill", [255, 0], ids=["all void", "one class only"])
def test_maps_without_structure(fill, radius):
    """Truth is constant, so R = 0 whatever is predicted: log √α in every class, and no gradient.

    That is what the regression comes to, and what stands in for it.
    """
    logits, _ = random_case(hw=(12, 13), void=0)
    label = np.full(logits.shape[:3], fill)
    value, gradient = jax.value_and_grad(lambda x: rmi_loss(x, label, radius=radius, pool="none"))(logits)
    np.testing.assert_allclose(value, 4 * ABSENT, rtol=1e-6)
    assert (gradient == 0).all()
    truth = jnp.full((12, 13), float(fill == 0))
    value, gradient = jax.jit(functools.partial(rmi_of_map, radius=radius))(truth, jax.nn.sigmoid(logits[0, ..., 1]))
    np.testing.assert_allclose(value, ABSENT, rtol=1e-6)
    assert jnp.abs(gradient).max() < 1e-12


def test_a_single_valid_pixel():
    logits, label = random_case(hw=(12, 13), images=1)
    label = np.full_like(label, 255)
    label[0, 5, 6] = 2
    expected = rmi_oracle.lower_bound(logits, label, pool="none")
    np.testing.assert_allclose(rmi_lower_bound(logits, label, pool="none"), expected, atol=2e-6)


@pytest.mark.parametrize("extra", [0, 1])
def test_images_barely_larger_than_a_region(extra):
    """One region (n = 1) is its own mean: log √α. Four regions: the definition."""
    logits, label = random_case(hw=(3 + extra, 3 + extra), images=1)
    actual = rmi_lower_bound(logits, label, pool="none")
    np.testing.assert_allclose(actual, rmi_oracle.lower_bound(logits, label, pool="none"), atol=2e-6)
    if extra == 0:
        np.testing.assert_allclose(actual, np.full((1, 4), ABSENT), rtol=1e-6)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 8.0, 30.0, 1e4]),
    sign=st.sampled_from(["random", "right", "wrong"]),
    pattern=st.sampled_from(["noise", "halves", "stripes", "dot", "one"]),
    void=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_never_nan(seed, scale, sign, pattern, void, dtype):
    """Value and gradient are finite; the value lies between its least, log √α, and that of knowing nothing (P = 0)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:21, :24]
    patterns = {"noise": rng.integers(0, 2, (21, 24)), "halves": columns // 12, "stripes": (rows + columns) // 4 % 2}
    patterns |= {"dot": (rows == 10) & (columns == 10), "one": np.ones((21, 24))}
    label = np.where(rng.random((21, 24)) < void, 255, patterns[pattern].astype(int))[None]
    direction = 2.0 * (label[..., None] == np.arange(2)) - 1
    noise = rng.normal(0, 1, (1, 21, 24, 2))
    logits = scale * {"random": noise, "right": direction, "wrong": -direction}[sign]
    bounds, gradient = BOUND_AND_GRADIENT(jnp.asarray(logits, dtype), jnp.asarray(label))
    truth = [(label[0] == k).astype(float) for k in range(2)]
    most = [rmi_oracle.stable_bound_of_maps(y, np.zeros((21, 24)), 3) for y in truth]
    assert jnp.isfinite(gradient).all()
    assert gradient.dtype == dtype
    assert (bounds >= ABSENT - 1e-5).all()
    assert (bounds[0] <= np.array(most) + 1e-5).all()


@jax.jit
def BOUND_AND_GRADIENT(logits, label):  # noqa: N802
    bounds, pull_back = jax.vjp(lambda x: rmi_lower_bound(x, label, pool="none"), logits)
    return bounds, pull_back(jnp.ones_like(bounds))[0]


def test_training_goes_on_where_the_textbook_formula_in_float32_is_nan():
    """A U-Net on 64×64 cut-outs of two rendered scenes: sure of its truth after some 100 steps, then the other fails."""
    scenes = [render_scene(number) for number in range(2)]
    image = jnp.stack([jnp.asarray(image[32:96, 96:160]) for image, _ in scenes]) / 255
    label = jnp.stack([jnp.asarray(CITYSCAPES.train_id_of_raw[mask][32:96, 96:160]) for _, mask in scenes])
    model, tx = UNet(19, 8), optax.adam(5e-3)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), image)

    @jax.jit
    def step(params, stats, opt_state):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": stats}
            logits, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
            loss, terms = pixel_and_rmi_loss(logits, label, pool="none")
            return loss, (logits, updated["batch_stats"], terms["rmi"])

        (_, (logits, stats_now, rmi)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, opt_state)
        maps = [x.reshape(-1, 64, 64) for x in pooled_maps(logits, label, label != 255, pool="none", pool_size=1)]
        failing = jnp.isnan(lax.map(lambda m: textbook(*m, 3), tuple(maps))).sum()
        return optax.apply_updates(params, updates), stats_now, opt_state, rmi, failing, optax.tree.norm(grads)

    state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))
    history = []
    for _ in range(240):
        *state, rmi, failing, norm = step(*state)
        history.append((rmi, failing, norm))
    rmi, failing, norm = np.array(history, np.float64).T
    first = int(np.argmax(failing > 0))
    assert (failing[:40] == 0).all()
    assert 40 <= first < 200
    assert np.isfinite(rmi).all()
    assert np.isfinite(norm).all()
    assert rmi[first:].min() < rmi[: first + 1].min() - 2, "and it keeps learning"


# ---- Transformations and invariances


def test_jit_vmap_and_pmap_equal_eager():
    logits, label = random_case(images=4)
    eager = rmi_lower_bound(logits, label)
    np.testing.assert_allclose(jax.jit(rmi_lower_bound)(logits, label), eager, rtol=1e-6)
    single = jax.vmap(lambda x, y: rmi_lower_bound(x[None], y[None])[0])
    np.testing.assert_allclose(single(logits, label), eager, rtol=1e-6)
    gradient = jax.grad(rmi_loss)(logits, label)
    of_each = jax.vmap(jax.grad(lambda x, y: rmi_loss(x[None], y[None])))(logits, label)
    assert relative_norm(of_each / 4, gradient) < 1e-6


@pytest.mark.usefixtures("four_devices")
def test_pmap_equals_one_device():
    logits, label = random_case(images=4)
    function = jax.pmap(lambda x, y: lax.pmean(jax.grad(rmi_loss)(x, y), "batch"), axis_name="batch")
    actual = function(logits[:, None], label[:, None])
    for i in range(4):  # a device has its own images' gradient, averaged over devices
        expected = sum(jax.grad(rmi_loss)(logits[j : j + 1], label[j : j + 1]) for j in range(4)) / 4
        assert relative_norm(actual[i], expected) < 1e-6


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_maps_in_groups_equal_maps_one_by_one(size):
    """Groups that do not divide the 12 maps, and maps of constant truth anywhere among them."""
    logits, label = random_case(classes=6)
    truth, prob = (x.reshape(-1, *x.shape[2:]) for x in pooled_maps(logits, label, label < 6, pool="max", pool_size=3))
    truth = truth.at[jnp.array([0, 5, 6])].set(0).at[3].set(1)
    of_map = functools.partial(rmi_of_map, radius=3)
    expected = [np.array(x) for x in lax.map(lambda m: of_map(*m), (truth, prob))]
    others = np.array([1, 2, 4, 7, 8, 9, 10, 11])
    for actual, x in zip(map_in_groups(of_map, truth, prob, size=size), expected, strict=True):
        np.testing.assert_allclose(actual[others], x[others], rtol=1e-5, atol=1e-6)
        if size == 1:  # those of constant truth are groups of nothing else
            np.testing.assert_array_equal(actual[np.array([0, 3, 5, 6])], 0)


@pytest.mark.parametrize("pool", ["max", "none"])
def test_batches_of_maps_equal_groups(pool):
    """What runs elsewhere than on a CPU, batches of maps with a rest, gives what groups give."""
    logits, label = random_case()
    truth, prob = pooled_maps(logits, label, label < 4, pool=pool, pool_size=3)
    flat = tuple(x.reshape(-1, *x.shape[2:]) for x in (truth, prob))
    batches = lax.map(lambda m: rmi_of_map(*m, 3), flat, batch_size=5)
    for actual, expected in zip(batches, rmi_and_gradient(truth, prob, 3), strict=True):
        np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def test_regions_in_segments_are_columns_of_regions(monkeypatch):
    """Segments of whole rows, side by side, are all regions in order; the last is filled up, with 0 once centered."""
    monkeypatch.setattr("jaxseg.losses.rmi.SEGMENT", 40)
    x = jnp.asarray(np.random.default_rng(0).random((13, 11)), jnp.float32)
    n = 11 * 9
    z = regions(x, 3)  # 11 rows of 9 columns in 2 segments of 6 rows
    assert z.shape == (2, 9, 54)
    columns = np.stack([x[i : i + 3, j : j + 3].ravel() for i in range(11) for j in range(9)], axis=1)
    flat = z.swapaxes(0, 1).reshape(9, -1)
    np.testing.assert_array_equal(flat[:, :n], columns)
    flat = centered(z, n).swapaxes(0, 1).reshape(9, -1)
    np.testing.assert_allclose(flat[:, :n], columns - columns.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(flat[:, n:], 0)


def test_bfloat16_logits_are_cast_before_the_sigmoid():
    logits, label = random_case()
    rounded = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = jax.value_and_grad(rmi_loss)(rounded, label)
    expected, exact = jax.value_and_grad(rmi_loss)(rounded.astype(jnp.float32), label)
    assert value == expected
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, exact.astype(jnp.bfloat16))


def test_every_label_beyond_the_classes_is_void():
    logits, label = random_case()
    for other in (4, 17, 254, -1):
        np.testing.assert_array_equal(
            rmi_lower_bound(logits, np.where(label == 255, other, label)), rmi_lower_bound(logits, label)
        )
    unsigned = label.astype(np.uint8)
    np.testing.assert_array_equal(rmi_lower_bound(logits, unsigned), rmi_lower_bound(logits, label))


@pytest.mark.parametrize("pool", ["max", "avg", "interpolate", "none"])
def test_void_pixels_have_no_say_and_no_gradient(pool):
    logits, label = random_case(void=0.3)
    wild = np.where((label == 255)[..., None], np.float32(3e38), logits)
    np.testing.assert_array_equal(rmi_lower_bound(wild, label, pool=pool), rmi_lower_bound(logits, label, pool=pool))
    gradient = jax.grad(lambda x: rmi_loss(x, label, pool=pool))(jnp.asarray(wild))
    assert (gradient[label == 255] == 0).all()
    assert (gradient[label != 255] != 0).any()


def test_mirrored_images_and_renamed_classes():
    """Mirroring permutes the pixels of a region, so det M stays; classes do not see each other."""
    logits, label = random_case(hw=(20, 22), classes=3)
    bounds = rmi_lower_bound(logits, label, pool="none")
    np.testing.assert_allclose(
        rmi_lower_bound(logits[:, :, ::-1], label[:, :, ::-1], pool="none"), bounds, rtol=2e-6, atol=1e-6
    )
    order = np.array([2, 0, 1])
    renamed = np.where(label == 255, 255, np.argsort(order)[np.minimum(label, 2)])
    np.testing.assert_array_equal(rmi_lower_bound(logits[..., order], renamed, pool="none"), bounds[:, order])


def test_config_allows_what_the_loss_takes():
    assert POOLS == ("max", "avg", "interpolate", "none")
    for radius in (1, MAX_RADIUS):
        validate(changed(loss__name="pixel_and_rmi", loss__radius=radius))
    with pytest.raises(InputError, match=f"config.loss.radius is {MAX_RADIUS + 1}; expected at most {MAX_RADIUS}"):
        validate(changed(loss__name="pixel_and_rmi", loss__radius=MAX_RADIUS + 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"radius": 0}, "radius=0; expected 1 to 10"),
        ({"radius": 11}, "radius=11"),
        ({"pool": "mean"}, "pool='mean'; expected one of max, avg, interpolate, none"),
        ({"pool_size": 0}, "pool_size=0"),
        ({"pool_size": 16, "radius": 4}, "31×34 pixels is 2×3 after pool='max', pool_size=16"),
        ({"pool": "interpolate", "pool_size": 40}, "is 0×0 after"),
    ],
)
def test_unusable_arguments_are_refused_while_tracing(arguments, words):
    logits, label = random_case()
    with pytest.raises(ValueError, match=r"expected|smaller than a region") as caught:
        jax.eval_shape(functools.partial(rmi_loss, **arguments), logits, label)
    assert words in str(caught.value)


def test_one_channel_is_refused():
    """Label 1 would be void to it, and the exactly wrong prediction rewarded."""
    label = np.arange(256).reshape(1, 16, 16) % 2
    for loss in (rmi_loss, pixel_and_rmi_loss, rmi_lower_bound):
        with pytest.raises(ValueError, match=r"logits \(1, 16, 16, 1\): one channel .* give two channels"):
            loss(jnp.zeros((1, 16, 16, 1)), label)


def test_other_refusals():
    logits, label = random_case()
    with pytest.raises(ValueError, match="pixel='tanh'; expected softmax or sigmoid"):
        pixel_and_rmi_loss(logits, label, pixel="tanh")
    with pytest.raises(ValueError, match="combine='sum'; expected convex or additive"):
        pixel_and_rmi_loss(logits, label, combine="sum")


# ---- As a loss of a peer

RMI_LOSS = make_loss(changed(loss__name="pixel_and_rmi", loss__pixel="sigmoid").loss, default().mutual)


def batch_of(label):
    return {"label": jnp.asarray(label), "valid": jnp.asarray(label != 255)}


def test_mean_over_parts_is_the_whole():
    logits, label = random_case(images=4)
    label[0] = 255
    pixels = jnp.float32((label != 255).sum())
    whole, terms = RMI_LOSS(logits, batch_of(label), pixels=pixels, num_parts=1)
    expected, public = pixel_and_rmi_loss(logits, label)
    np.testing.assert_allclose(whole, expected, rtol=1e-6)
    for name in public:
        np.testing.assert_allclose(terms[name], public[name], rtol=1e-6)
    parts = [RMI_LOSS(logits[i : i + 1], batch_of(label[i : i + 1]), pixels=pixels, num_parts=4) for i in range(4)]
    np.testing.assert_allclose(np.mean([loss for loss, _ in parts]), whole, rtol=1e-6)
    for name in terms:
        np.testing.assert_allclose(np.mean([own[name] for _, own in parts]), terms[name], rtol=1e-6)


def test_mean_over_classes_present():
    """Image 0 shows classes 0 and 2, image 1 class 1 alone; the loss itself sums over all four."""
    logits, label = random_case()
    label[0] = np.where(label[0] % 2 == 1, 2, label[0])
    label[0][label[0] > 3] = 255
    label[1] = np.where(label[1] == 255, 255, 1)
    bounds = np.asarray(rmi_lower_bound(logits, label))
    _, terms = RMI_LOSS(logits, batch_of(label), pixels=jnp.float32((label != 255).sum()), num_parts=1)
    np.testing.assert_allclose(terms["rmi_present"], (bounds[0, [0, 2]].mean() + bounds[1, 1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(terms["rmi"], bounds.sum() / 2, rtol=1e-6)
