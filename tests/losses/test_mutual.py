"""Mutual learning: PyTorch's numbers, each peer's own gradient, peers that do not disturb each other, one device as four."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxseg.config import default
from jaxseg.losses.mutual import divergence, mutual_kl
from jaxseg.losses.objective import make_loss
from jaxseg.losses.pixel import cross_entropy
from tests.configs import changed

CLASSES = 5


# ---- The divergence


@pytest.mark.parametrize(
    ("case", "pixels", "form"),
    [("all_pixels", "all", "kl"), ("valid_pixels", "valid", "kl"), ("released", "all", "released")],
)
@pytest.mark.parametrize(("own", "other"), [("teacher", "student"), ("student", "teacher")])
def test_divergence_is_pytorchs(golden, case, pixels, form, own, other):
    recorded = golden("mutual_c21")
    expected = json.loads(str(recorded[case]))
    logits, peer_logits = (recorded[f"{name}_logits_nchw"].transpose(0, 2, 3, 1) for name in (own, other))
    label = recorded["labels"].astype(int)
    valid = label != 255

    def loss(logits):
        entropy = cross_entropy(logits, label, valid).sum() / np.float32(valid.sum())
        kl = mutual_kl(logits, peer_logits, label, pixels=pixels, form=form)
        return entropy + kl, (entropy, kl)

    (_, (entropy, kl)), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    np.testing.assert_allclose(entropy, expected[f"ce_{own}"], rtol=1e-6)
    np.testing.assert_allclose(kl, expected[f"kl_{own}"], rtol=2e-6)
    theirs = recorded[f"{case}/{own}_grad_nchw"].transpose(0, 2, 3, 1)
    assert np.linalg.norm(grad - theirs) < 1e-6 * np.linalg.norm(theirs)


def random_logits(seed, shape=(2, 4, 6, CLASSES), scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def some_label(seed=0, shape=(2, 4, 6)):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.3, 255, rng.integers(CLASSES, size=shape))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_scipys(temperature):
    """scipy.stats.entropy(p, q) of softmax distributions in float64, times T² (Hinton et al.)."""
    own, peer, label = random_logits(0), random_logits(1), some_label()
    p, q = (special.softmax(np.asarray(x, np.float64) / temperature, -1) for x in (peer, own))
    expected = temperature**2 * stats.entropy(p, q, axis=-1)
    found = functools.partial(mutual_kl, own, peer, label, temperature=temperature)
    np.testing.assert_allclose(found(pixels="all"), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(found(pixels="valid"), expected[label != 255].mean(), rtol=1e-5)


def test_gradient_is_the_difference_of_distributions():
    """d KL(p || softmax(x)) / dx = softmax(x) - p, over the number of pixels; at T times T, again by Hinton et al."""
    own, peer, label = random_logits(2), random_logits(3), some_label()
    valid = label != 255
    for T in (1.0, 2.0):
        grad = jax.grad(mutual_kl)(own, peer, label, pixels="valid", temperature=T)
        expected = T * (special.softmax(own / T, -1) - special.softmax(peer / T, -1)) / valid.sum()
        np.testing.assert_allclose(grad, np.where(valid[..., None], expected, 0), atol=1e-8)


def test_peer_is_not_differentiated():
    own, peer, label = random_logits(0), random_logits(1), some_label()
    for form in ("kl", "released"):
        assert not np.any(jax.grad(mutual_kl, argnums=1)(own, peer, label, form=form))


def test_agreement_is_zero_and_certain_disagreement_is_finite():
    """Equal logits: 0, gradient 0. One-hot at ±1e4 against the opposite: the logits' difference, 2e4 nats."""
    own, label = random_logits(0), some_label()
    value, grad = jax.value_and_grad(mutual_kl)(own, own, label)
    assert abs(value) < 1e-6
    assert np.abs(grad).max() < 1e-8
    sure = jnp.array([[[[1e4, -1e4]]]])
    np.testing.assert_allclose(mutual_kl(-sure, sure, np.zeros((1, 1, 1), int)), 2e4, rtol=1e-6)


def test_void_alone_counts_as_nothing():
    own, peer = random_logits(0), random_logits(1)
    label = np.full((2, 4, 6), 255)
    value, grad = jax.value_and_grad(mutual_kl)(own, peer, label, pixels="valid")
    assert value == 0
    assert not np.any(grad)


def test_released_form_is_todays_pytorch_but_for_negative_targets():
    """PyTorch from 1.13 on: xlogy(z, z) - z log q, here by SciPy: NaN exactly where z < 0, else the same."""
    own, peer = (random_logits(seed, (1, 2, 3, CLASSES)) for seed in (0, 1))
    z = np.asarray(peer, np.float64)
    terms = special.xlogy(z, z) - z * special.log_softmax(np.asarray(own, np.float64), -1)
    assert np.array_equal(np.isnan(terms), z < 0)
    assert 0 < (z < 0).sum() < z.size
    found = mutual_kl(own, peer, np.zeros((1, 2, 3), int), form="released")
    np.testing.assert_allclose(found, np.where(z < 0, 0, terms).mean(), rtol=1e-6)


def test_released_form_by_hand():
    """Target logits (2, -1), own logits 0: mean over 2 classes of 2 (log 2 - log ½) and nothing."""
    value = mutual_kl(jnp.zeros((1, 1, 1, 2)), jnp.array([[[[2.0, -1.0]]]]), np.zeros((1, 1, 1), int), form="released")
    np.testing.assert_allclose(value, 2 * (np.log(2) + np.log(2)) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pixels": "void"}, "pixels='void'; expected all or valid"),
        ({"form": "js"}, "form='js'; expected kl or released"),
        ({"peer_logits": jnp.zeros((2, 4, 6, CLASSES + 1))}, r"peer_logits \(2, 4, 6, 6\)"),
    ],
)
def test_misuse_is_named(arguments, words):
    arguments = {"logits": random_logits(0), "peer_logits": random_logits(1), "label": some_label()} | arguments
    with pytest.raises(ValueError, match=words):
        mutual_kl(**arguments)


# ---- Peers


def test_parts_of_a_batch_average_to_the_whole():
    """As with accumulated slices: the mean over parts of the term is the term, all pixels or valid ones."""
    own, peer, label = (
        random_logits(0, (4, 4, 6, CLASSES)),
        random_logits(1, (4, 4, 6, CLASSES)),
        some_label(0, (4, 4, 6)),
    )
    batch = {"label": label, "valid": label != 255}
    for counted in ("all", "valid"):
        loss_fn = make_loss(default().loss, changed(mutual__pixels=counted).mutual)
        parts = []
        for part in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)):
            share = {key: value[part] for key, value in batch.items()}
            count = {"pixels": jnp.float32(batch["valid"].sum()), "num_parts": 4}
            parts.append(loss_fn(own[part], share, peer_logits=[peer[part]], **count)[1]["kl"])
        np.testing.assert_allclose(np.mean(parts), mutual_kl(own, peer, label, pixels=counted), rtol=1e-5)


def test_divergence_ignores_pixels_that_do_not_count():
    own, peer, label = random_logits(0), random_logits(1), some_label()
    counted = label != 255
    found = divergence(own, peer, counted, form="kl", temperature=1.0)
    changed_there = jnp.where(counted[..., None], own, 77.0)
    assert np.array_equal(found, divergence(changed_there, peer, counted, form="kl", temperature=1.0))
    assert not found[~counted].any()
