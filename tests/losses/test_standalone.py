"""The losses by themselves: PyTorch's values and gradients, float64 by hand, masks, absent classes, void, labels refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.losses import (
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    lovasz_loss,
    mutual_kl,
    pixel_and_rmi_loss,
    rmi_loss,
    rmi_lower_bound,
    tversky_loss,
)

C = 4
WEIGHTS = np.array([0.5, 2.0, 0.0, 3.0], np.float32)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (2, 6, 5, C)).astype(np.float32)
LABEL = np.where(RNG.random((2, 6, 5)) < 0.3, 255, RNG.integers(0, 3, (2, 6, 5)))  # class 3 is absent
VALID = LABEL != 255
LOSSES = {
    "cross_entropy": cross_entropy_loss,
    "weighted": functools.partial(cross_entropy_loss, class_weights=WEIGHTS),
    "smoothed": functools.partial(cross_entropy_loss, class_weights=WEIGHTS, label_smoothing=0.2),
    "dice": dice_loss,
    "dice_smooth": functools.partial(dice_loss, smooth=1.0),
    "tversky": functools.partial(tversky_loss, alpha=0.3, beta=0.7),
    "focal": focal_loss,
    "focal_half": functools.partial(focal_loss, gamma=0.5),
    "focal_sigmoid": functools.partial(focal_loss, kind="sigmoid"),
    "lovasz": lovasz_loss,
    "lovasz_per_image": functools.partial(lovasz_loss, per_image=True),
}
ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
GOLDEN = {
    "cross_entropy_weighted": None,  # with the recorded weights
    "cross_entropy_smoothing_0.1": functools.partial(cross_entropy_loss, label_smoothing=0.1),
    "dice": dice_loss,
    "dice_smooth_1": functools.partial(dice_loss, smooth=1.0),
    "tversky_0.3_0.7": functools.partial(tversky_loss, alpha=0.3, beta=0.7),
    "focal_gamma_2_sigmoid": functools.partial(focal_loss, kind="sigmoid"),
    "focal_gamma_2_softmax": focal_loss,
    "lovasz_float32": lovasz_loss,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_value_and_gradient_are_pytorchs(golden, name):
    """Values to 1e-6; the gradient's largest error to 1e-5 of its largest element, and its norm's to 1e-6."""
    recorded = golden("losses_c7")
    logits = jnp.asarray(recorded["logits_nchw"].transpose(0, 2, 3, 1))
    label = recorded["labels"]
    weighted = functools.partial(cross_entropy_loss, class_weights=recorded["class_weights"].astype(np.float32))
    value, gradient = jax.value_and_grad(GOLDEN[name] or weighted)(logits, label)
    expected = recorded[f"{name}_grad_nchw"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(value, recorded[f"{name}_value"], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.linalg.norm(gradient - expected) < 1e-6 * np.linalg.norm(expected)
    assert not np.asarray(gradient)[label == 255].any()


def test_in_float64_the_goldens_are_met_to_rounding(golden):
    recorded = golden("losses_c7")
    with jax.enable_x64(True):
        for name, loss in GOLDEN.items():
            loss = loss or functools.partial(cross_entropy_loss, class_weights=recorded["class_weights"])
            logits = jnp.asarray(recorded["logits_nchw"].transpose(0, 2, 3, 1), jnp.float64)
            value, gradient = jax.value_and_grad(loss)(logits, recorded["labels"])
            rtol = 1e-7 if "float32" in name else 1e-13
            np.testing.assert_allclose(value, recorded[f"{name}_value"], rtol=rtol)
            expected = recorded[f"{name}_grad_nchw"].transpose(0, 2, 3, 1)
            atol = 1e-4 if "float32" in name else 1e-12  # the reference's own rounding; see `jaccard_growth`
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=atol * np.abs(expected).max())


def by_hand(name):
    """Pixel by pixel and class by class, in float64."""
    x = LOGITS[VALID].astype(np.float64)
    truth = np.eye(C)[LABEL[VALID]]
    prob = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    if name in ("cross_entropy", "weighted", "smoothed"):
        weights = np.ones(C) if name == "cross_entropy" else WEIGHTS.astype(np.float64)
        share = 0.2 if name == "smoothed" else 0.0
        target = (1 - share) * truth + share / C
        return -(target * weights * np.log(prob)).sum() / (truth * weights).sum()
    if name in ("focal", "focal_half"):
        own = prob[truth > 0]
        return (-((1 - own) ** (2 if name == "focal" else 0.5)) * np.log(own)).mean()
    if name == "focal_sigmoid":
        sigmoid = 1 / (1 + np.exp(-x))
        own = np.where(truth > 0, sigmoid, 1 - sigmoid)
        return (-((1 - own) ** 2) * np.log(own)).mean()
    alpha, beta, smooth = {"dice": (0.5, 0.5, 0), "dice_smooth": (0.5, 0.5, 1), "tversky": (0.3, 0.7, 0)}[name]
    hit, false, missed = ((prob * truth).sum(0), (prob * (1 - truth)).sum(0), ((1 - prob) * truth).sum(0))
    score = (hit + smooth) / (hit + alpha * false + beta * missed + smooth)
    return np.where(truth.any(0), 1 - score, 0).mean()


@pytest.mark.parametrize("name", [name for name in LOSSES if "lovasz" not in name])
def test_against_the_definition(name):
    np.testing.assert_allclose(LOSSES[name](LOGITS, LABEL), by_hand(name), rtol=2e-6)


def jaccard(wrong, truth):
    """1 - IoU of the set `truth` if exactly the pixels `wrong` are got wrong."""
    return wrong.sum() / (truth | wrong).sum() if wrong.any() else 0.0


def lovasz_by_definition(prob, label):
    """The Lovász extension by its definition: sort by error, and add errors times what each adds to 1 - IoU."""
    values = []
    for k in np.unique(label):
        truth = label == k
        error = np.abs(truth - prob[:, k])
        wrong, value = np.zeros(len(label), bool), 0.0
        for i in np.argsort(-error):
            before = jaccard(wrong, truth)
            wrong[i] = True
            value += error[i] * (jaccard(wrong, truth) - before)
        values.append(value)
    return np.mean(values)


def test_lovasz_is_its_definition():
    prob = np.exp(LOGITS.astype(np.float64))
    prob /= prob.sum(-1, keepdims=True)
    np.testing.assert_allclose(lovasz_loss(LOGITS, LABEL), lovasz_by_definition(prob[VALID], LABEL[VALID]), rtol=1e-6)
    of_each = [lovasz_by_definition(prob[i][VALID[i]], LABEL[i][VALID[i]]) for i in (0, 1)]
    np.testing.assert_allclose(lovasz_loss(LOGITS, LABEL, per_image=True), np.mean(of_each), rtol=1e-6)


def test_lovasz_of_sure_predictions_is_one_minus_iou():
    """Truth 0 0 0 1, predicted 0 0 1 1: IoU 2/3 and 1/2."""
    logits = 100 * jax.nn.one_hot(jnp.array([[[0, 0, 1, 1]]]), 2)
    np.testing.assert_allclose(lovasz_loss(logits, jnp.array([[[0, 0, 0, 1]]])), 1 - (2 / 3 + 1 / 2) / 2, rtol=1e-6)


@ALL
def test_gradient_is_that_of_the_value(loss):
    """By finite differences; of Lovász away from ties, where it has one."""
    check_grads(lambda x: loss(x, LABEL), (LOGITS,), order=1, modes=("rev",), atol=1e-3, rtol=1e-2, eps=1e-2)


@ALL
def test_masking_is_slicing(loss):
    """Rows that are void are as if they were not there, whatever is in them."""
    label = np.where(np.arange(6)[None, :, None] < 3, LABEL, 255)
    wild = np.where((label == 255)[..., None], np.float32(1e4), LOGITS)
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(wild), label)
    expected, of_slice = jax.value_and_grad(loss)(jnp.asarray(LOGITS[:, :3]), LABEL[:, :3])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :3], of_slice, rtol=1e-5, atol=1e-8)
    assert not np.asarray(gradient)[label == 255].any()


@ALL
@pytest.mark.parametrize("other", [-1, -100, C, 254])
def test_what_is_no_class_is_void(loss, other):
    np.testing.assert_array_equal(loss(LOGITS, np.where(VALID, LABEL, other)), loss(LOGITS, LABEL))
    np.testing.assert_array_equal(loss(LOGITS, LABEL.astype(np.uint8)), loss(LOGITS, LABEL))


@ALL
def test_all_void_is_zero_with_zero_gradient(loss):
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGITS), np.full(LABEL.shape, 255))
    assert value == 0
    assert not gradient.any()


@ALL
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_sure_predictions_stay_finite(loss, size):
    """Right and wrong ones, with classes absent; the best value is 0 where truth is not smoothed."""
    for off in (0, 1):
        logits = size * jax.nn.one_hot(jnp.where(VALID, (LABEL + off) % C, 0), C)
        value, gradient = jax.value_and_grad(loss)(logits, LABEL)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    if loss not in (LOSSES["smoothed"], LOSSES["focal_sigmoid"]):  # whose best logits are others
        np.testing.assert_allclose(loss(size * jax.nn.one_hot(jnp.where(VALID, LABEL, 0), C), LABEL), 0, atol=1e-6)


@ALL
def test_not_a_number_is_not_hidden(loss):
    logits = np.where(VALID[..., None], np.nan, LOGITS).astype(np.float32)
    assert np.isnan(loss(logits, LABEL))


@ALL
def test_jit_and_bfloat16(loss):
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, LABEL), loss(LOGITS, LABEL), rtol=1e-6)
    rounded = jnp.asarray(LOGITS, jnp.bfloat16)
    value, gradient = jax.value_and_grad(loss)(rounded, LABEL)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(value, loss(rounded.astype(jnp.float32), LABEL))


def test_special_cases():
    plain = cross_entropy_loss(LOGITS, LABEL)
    np.testing.assert_allclose(cross_entropy_loss(LOGITS, LABEL, class_weights=[2.0] * C), plain, rtol=1e-6)
    np.testing.assert_allclose(focal_loss(LOGITS, LABEL, gamma=0.0), plain, rtol=1e-6)
    np.testing.assert_allclose(tversky_loss(LOGITS, LABEL, alpha=0.5, beta=0.5), dice_loss(LOGITS, LABEL), rtol=1e-6)
    only_weightless = np.where(LABEL == 2, LABEL, 255)
    assert cross_entropy_loss(LOGITS, only_weightless, class_weights=WEIGHTS) == 0


@pytest.mark.parametrize(
    "loss", [*LOSSES.values(), rmi_loss, rmi_lower_bound, lambda logits, label: pixel_and_rmi_loss(logits, label)[0]]
)
def test_labels_counted_from_one_are_refused(loss):
    """Where they are concrete, also under grad; labels with a 0 or without c are not."""
    logits = jnp.zeros((1, 12, 12, C))
    label = 1 + np.arange(144).reshape(1, 12, 12) % C
    for concrete in (label, jnp.asarray(label), label.astype(np.uint8)):
        with pytest.raises(ValueError, match=r"label holds 4 and no 0.*subtract 1"):
            loss(logits, concrete)
    with pytest.raises(ValueError, match="label holds 4"):
        jax.grad(lambda x: loss(x, label).sum())(logits)
    jax.jit(loss)(logits, label)  # there they are not known
    for fine in (label - 1, np.where(label == 4, 255, label), np.where(label == 1, 0, label)):
        loss(logits, fine)


@pytest.mark.parametrize("loss", [*LOSSES.values(), functools.partial(mutual_kl, LOGITS[..., :1])])
def test_one_channel_is_refused(loss):
    with pytest.raises(ValueError, match="one channel is one class"):
        loss(jnp.zeros((2, 6, 5, 1)), LABEL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits": np.zeros((2, 6, 4, C), np.float32)}, "expected .b, h, w, c. and .b, h, w."),
        ({"label": np.zeros((2, 6, 5), np.float32)}, "label is float32; expected integers"),
    ],
)
@ALL
def test_shapes_and_types_are_refused(loss, arguments, words):
    with pytest.raises(ValueError, match=words):
        loss(**{"logits": LOGITS, "label": LABEL} | arguments)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"class_weights \(3,\).*one per class"):
        cross_entropy_loss(LOGITS, LABEL, class_weights=WEIGHTS[:3])
    with pytest.raises(ValueError, match="kind='tanh'; expected softmax or sigmoid"):
        focal_loss(LOGITS, LABEL, kind="tanh")
