"""Checkpoints: the latest and the best are kept, and what comes back is what was saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import default
from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.training import checkpoint
from jaxseg.training.state import create_peer


def peers(seed=0, classes=3, name="unet"):
    model = UNet(classes, 2)
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))
    peer = create_peer(model, optax.adam(1e-3), variables).replace(step=jnp.asarray(7 + seed))
    return {name: jax.tree.map(np.asarray, peer)}


@pytest.fixture
def config():
    return default().checkpoint


def save_all(tmp_path, config, metric, values):
    with checkpoint.open_manager(tmp_path, config) as manager:
        for step, value in values:
            checkpoint.save(manager, step, peers(step), None if value is None else {metric: value})
        manager.wait_until_finished()
        return sorted(manager.all_steps()), manager.best_step(), manager.latest_step()


@pytest.mark.parametrize(
    ("metric", "values", "kept", "best"),
    [
        ("mean_iou", [(1, 0.9), (2, 0.8), (3, 0.1), (4, 0.05)], [1, 3, 4], 1),
        ("train_loss", [(1, 0.9), (2, 0.1), (3, 0.5), (4, 0.6)], [2, 3, 4], 2),
        ("mean_iou", [(1, None), (2, 0.3), (3, None), (4, None), (5, None)], [2, 4, 5], 2),
        ("mean_iou", [(1, 0.2), (2, float("nan")), (3, 0.1), (4, 0.1)], [1, 3, 4], 1),
    ],
)
def test_latest_two_and_best_are_kept(tmp_path, config, metric, values, kept, best):
    config.best = metric
    assert save_all(tmp_path, config, metric, values) == (kept, best, values[-1][0])


def test_restored_is_saved_bit_for_bit(tmp_path, config):
    saved = peers(3)
    with checkpoint.open_manager(tmp_path, config) as manager:
        checkpoint.save(manager, 10, saved, None)
    with checkpoint.open_manager(tmp_path, config, read_only=True) as manager:
        restored = checkpoint.restore(manager, 10, peers(0))
    pairs = zip(jax.tree.leaves_with_path(saved), jax.tree.leaves(restored), strict=True)
    for (path, a), b in pairs:
        assert np.array_equal(a, b), path
        assert a.dtype == b.dtype, path
    assert restored["unet"].step == 10


def test_other_shapes_and_names_are_refused(tmp_path, config):
    with checkpoint.open_manager(tmp_path, config) as manager:
        checkpoint.save(manager, 10, peers(), None)
        manager.wait_until_finished()
        with pytest.raises(InputError, match=r"checkpoints/10: this checkpoint cannot be read as peers unet"):
            checkpoint.restore(manager, 10, peers(classes=4))
        with pytest.raises(InputError, match=r"cannot be read as peers student"):
            checkpoint.restore(manager, 10, peers(name="student"))


def test_steps_by_name(tmp_path, config):
    save_all(tmp_path, config, "mean_iou", [(2, 0.9), (4, 0.1)])
    with checkpoint.open_manager(tmp_path, config, read_only=True) as manager:
        assert [checkpoint.find_step(manager, which) for which in ("last", "best", "2")] == [4, 2, 2]
        with pytest.raises(InputError, match="no checkpoint '3'; there are 2, 4, last and best"):
            checkpoint.find_step(manager, "3")


def test_empty_run_is_named(tmp_path, config):
    with (
        checkpoint.open_manager(tmp_path, config) as manager,
        pytest.raises(InputError, match=r"checkpoints: there is no checkpoint"),
    ):
        checkpoint.find_step(manager, "last")
