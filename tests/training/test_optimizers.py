"""Learning rates by hand; Adam and SGD against their published updates in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.training.optimizers import make_optimizer, make_schedule


def optim(**fields):
    config = default().optim
    config.update(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, [0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [0.1, 0.05, 0.0]),
        ({"schedule": "poly"}, [0.1, 0.1 * 0.5**0.9, 0.0]),
    ],
)
def test_schedules_at_start_middle_end(fields, expected):
    schedule = make_schedule(optim(learning_rate=0.1, **fields), steps=100)
    np.testing.assert_allclose([schedule(0), schedule(50), schedule(100)], expected, atol=1e-8)


def test_warm_up_is_linear_and_comes_before_the_decay():
    schedule = make_schedule(optim(learning_rate=0.1, schedule="poly", warmup_steps=10), steps=110)
    np.testing.assert_allclose(
        [schedule(0), schedule(5), schedule(10), schedule(60)], [0, 0.05, 0.1, 0.1 * 0.5**0.9], rtol=1e-6
    )


GRADS = np.random.default_rng(0).normal(size=(5, 7))


def run(config):
    tx, params = make_optimizer(config, steps=100), jnp.ones(7)
    state = tx.init(params)
    for g in GRADS.astype(np.float32):
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = params + updates
    return params


def test_adam_is_kingma_ba_with_pytorchs_defaults():
    p, m, v = np.ones(7), np.zeros(7), np.zeros(7)
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - 0.01 * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * p)
    np.testing.assert_allclose(run(optim(learning_rate=0.01, weight_decay=0.1)), p, rtol=1e-5)


def test_sgd_has_momentum_0_9():
    p, m = np.ones(7), np.zeros(7)
    for g in GRADS:
        m = 0.9 * m + g
        p = p - 0.01 * m
    np.testing.assert_allclose(run(optim(name="sgd", learning_rate=0.01)), p, rtol=1e-5)
