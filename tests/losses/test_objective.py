"""What a network learns by: terms, weights and means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.losses.objective import make_loss, pixel_loss, ramp
from tests.losses.test_pixel import LABEL, LOGITS, VALID, oracle


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_mean_over_parts_is_the_whole(kind):
    """The parts hold different numbers of valid pixels."""
    assert VALID[0].sum() != VALID[1].sum()
    pixels = jnp.float32(VALID.sum())
    whole = pixel_loss(LOGITS, LABEL, VALID, kind=kind, pixels=pixels, num_parts=1)
    shares = (np.s_[i : i + 1] for i in (0, 1))
    parts = [pixel_loss(LOGITS[s], LABEL[s], VALID[s], kind=kind, pixels=pixels, num_parts=2) for s in shares]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-6)
    divisor = VALID.sum() + (kind == "sigmoid")
    np.testing.assert_allclose(whole, oracle(kind).sum() / divisor, rtol=1e-5)


@pytest.mark.parametrize("name", ["rmi_max3_r3_noisy", "rmi_softmax_sigmoid", "rmi_r1"])
def test_pixel_term_is_the_rmi_authors(golden, name):
    recorded = golden(name)
    kind = {"forward_sigmoid": "sigmoid", "forward_softmax_sigmoid": "softmax"}[recorded["meta"]["forward"]]
    logits, label = recorded["logits_nchw"].transpose(0, 2, 3, 1), recorded["labels"].astype(int)
    valid = label < logits.shape[-1]
    value = pixel_loss(logits, label, valid, kind=kind, pixels=jnp.float32(valid.sum()), num_parts=1)
    np.testing.assert_allclose(value, recorded["pixel_term"], rtol=2e-6)


def test_class_weights_and_their_sum():
    """Two pixels of class 0, one of class 2, one void: 2 · 0.5 + 3."""
    loss_fn = make_loss(default().loss, default().mutual, class_weights=(0.5, 7.0, 3.0))
    label = jnp.array([[[0, 0, 2, 255]]])
    assert loss_fn.weights_of({"label": label, "valid": label != 255}) == 4.0
    assert make_loss(default().loss, default().mutual).weights_of({}) is None


@pytest.mark.parametrize(
    ("start_steps", "ramp_steps", "expected"),
    [(0, 4, [0, 0.25, 0.5, 0.75, 1, 1]), (2, 2, [0, 0, 0, 0.5, 1, 1]), (3, 0, [0, 0, 0, 1, 1, 1])],
)
def test_ramp_by_hand(start_steps, ramp_steps, expected):
    options = {"start_steps": start_steps, "ramp_steps": ramp_steps}
    assert [float(ramp(jnp.int32(step), **options)) for step in range(6)] == expected


def test_all_void_is_zero_with_zero_gradient():
    loss_fn = make_loss(default().loss, default().mutual)
    batch = {"label": jnp.full((1, 2, 2), 255), "valid": jnp.zeros((1, 2, 2), bool)}
    value, grad = jax.value_and_grad(lambda x: loss_fn(x, batch, pixels=jnp.float32(0), num_parts=1)[0])(
        jnp.ones((1, 2, 2, 3))
    )
    assert value == 0
    assert (grad == 0).all()
