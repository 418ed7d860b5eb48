"""The steps by pmap are the steps by `jax.jit(jax.shard_map)`: to move from one to the other is a choice, not a rewrite."""

import functools

import jax
import numpy as np
import pytest

from jaxseg.training import parallel
from jaxseg.training.step import eval_step, train_step
from tests.losses.test_mutual import CLASSES
from tests.steps import random_batch
from tests.training.test_step_of_peers import ALL, losses_of, some_peers


def by_shard_map(step, *, out_specs):
    """`(peers, batch) -> …` of the global batch [b, ...], each device getting its b / devices images."""
    mesh = jax.make_mesh((jax.device_count(),), (parallel.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    in_specs = (jax.P(), jax.P(parallel.AXIS))
    # Unchecked as in pmap: where JAX knows what varies over devices it sums gradients itself, and `pmean` would count twice.
    mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("updates", ["together", "in_turn"])
def test_training_steps_are_those_of_shard_map(updates):
    """Three steps of three peers, RMI among them, bit for bit: both ways lead to the same program for a device."""
    options = {"losses": losses_of(*ALL, weight=1.0), "seed": 0, "accumulate_steps": 1, "updates": updates}
    step = by_shard_map(functools.partial(train_step, **options, axis_name=parallel.AXIS), out_specs=jax.P())
    pmapped = parallel.compile_train_step(**options)
    start = some_peers(*ALL)
    peers, replicated = parallel.replicate(start), parallel.replicate(start)
    for seed in range(3):
        batch = random_batch(seed, classes=CLASSES)
        peers, expected = step(peers, batch)
        replicated, measured = pmapped(replicated, parallel.shard(batch))
        assert_equal(parallel.unreplicate(measured), parallel.unreplicate(expected))
    assert_equal(parallel.unreplicate(replicated), parallel.unreplicate(peers))
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(peers), strict=True))


@pytest.mark.usefixtures("four_devices")
def test_evaluation_step_is_that_of_shard_map():
    options = {"num_classes": CLASSES}
    step = functools.partial(eval_step, **options, axis_name=parallel.AXIS)
    mapped = by_shard_map(step, out_specs=(jax.P(), jax.P(parallel.AXIS)))
    peers, batch = some_peers(*ALL), random_batch(0, classes=CLASSES)
    confusions, predictions = parallel.compile_eval_step(**options)(parallel.replicate(peers), parallel.shard(batch))
    expected_confusions, expected_predictions = mapped(parallel.replicate(peers), batch)
    assert_equal(parallel.unreplicate(confusions), parallel.unreplicate(expected_confusions))
    assert sum(confusion.sum() for confusion in confusions.values()) == len(ALL) * batch["valid"].sum()
    for name, prediction in predictions.items():
        assert np.array_equal(parallel.gather(prediction), expected_predictions[name])


def test_what_is_replicated_is_a_copy_on_every_device():
    """So that the first step, which reuses the memory of what it is given, leaves what was replicated as it is."""
    tree = {
        "jax": jax.numpy.arange(6.0).reshape(2, 3),
        "numpy": np.arange(6.0, dtype=np.float32),
        "scalar": np.int32(7),
    }
    replicated = parallel.replicate(tree)
    for name, array in replicated.items():
        assert len(array.addressable_shards) == jax.local_device_count()
        for shard in array.addressable_shards:
            assert np.array_equal(shard.data, tree[name])
    consumed = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=(0,))(replicated)
    assert np.array_equal(consumed["jax"], np.arange(6.0).reshape(2, 3) + 1)
    assert all(array.is_deleted() for array in replicated.values())
    assert np.array_equal(tree["jax"], np.arange(6.0).reshape(2, 3))
    assert np.array_equal(tree["numpy"], np.arange(6.0))
