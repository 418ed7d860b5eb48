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


NOTES = {
    "metrics that are no JSON": ("metrics/metrics", "nonsense"),
    "metrics that are a list": ("metrics/metrics", "[1]"),
    "metrics of another name": ("metrics/metrics", '{"loss": 1}'),
    "a metric that is a text": ("metrics/metrics", '{"mean_iou": "high"}'),
    "a metric beyond all numbers": ("metrics/metrics", '{"mean_iou": 1e400}'),
    "metadata that are a list": ("_CHECKPOINT_METADATA", "[1]"),
    "metadata of other types": ("_CHECKPOINT_METADATA", '{"item_handlers": 7, "metrics": 7}'),
    "metadata a hundred thousand deep": ("_CHECKPOINT_METADATA", "[" * 100_000),
}


@pytest.mark.parametrize(("name", "text"), NOTES.values(), ids=NOTES)
def test_notes_of_the_newest_that_cannot_be_read_put_it_aside(tmp_path, config, name, text):
    save_all(tmp_path, config, "mean_iou", [(1, 0.2), (2, 0.9)])
    (tmp_path / "checkpoints/2" / name).write_text(text)
    told = []
    with checkpoint.open_manager(tmp_path, config, say=told.append) as manager:
        step, _ = checkpoint.restore_newest(manager, peers(1), aside=tmp_path / "damaged", say=told.append)
        assert (step, manager.best_step()) == (1, 1)
        checkpoint.save(manager, 3, peers(3), {"mean_iou": 0.1})
    assert len(told) == 1
    assert str(tmp_path / "damaged/2") in told[0]
    assert (tmp_path / "damaged/2" / name).read_text() == text
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


def test_notes_that_cannot_be_read_are_left_where_nothing_may_be_moved(tmp_path, config):
    save_all(tmp_path, config, "mean_iou", [(1, 0.2), (2, 0.9)])
    (tmp_path / "checkpoints/2/metrics/metrics").write_text("nonsense")
    with pytest.raises(InputError, match=r"checkpoints/2: cannot be read .*move it away"):
        checkpoint.open_manager(tmp_path, config, read_only=True)
    (tmp_path / "checkpoints/1/metrics/metrics").write_text("nonsense")
    with pytest.raises(InputError, match=r"checkpoints/1, .*checkpoints/2: cannot be read"):
        checkpoint.open_manager(tmp_path, config)  # a run that would begin anew
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
