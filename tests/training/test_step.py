"""The step: PyTorch's curve, four devices as one, slices as the whole, compiled once, memory reused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import default
from jaxseg.losses.objective import make_loss
from jaxseg.models import UNet
from jaxseg.models.torch_weights import unet_from_torch
from jaxseg.training import parallel, step
from jaxseg.training.state import create_peer
from tests.configs import changed
from tests.steps import LOSSES, assert_close, random_batch, single_device_step


def fresh_peers(tx=None, features=4):
    model = UNet(5, features, axis_name=parallel.AXIS)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return {"unet": create_peer(model, tx or optax.sgd(0.1), variables)}


RMI_LOSSES = {"unet": make_loss(changed(loss__name="pixel_and_rmi", loss__pixel="sigmoid").loss, default().mutual)}


@pytest.mark.parametrize(("name", "losses_of"), [("curve_unet_ce", LOSSES), ("curve_unet_rmi", RMI_LOSSES)])
def test_twelve_losses_are_pytorchs(golden, name, losses_of):
    recorded = golden(name)
    meta = recorded["meta"]
    model = UNet(meta["out_channels"], meta["init_features"], axis_name=parallel.AXIS)
    peers = {"unet": create_peer(model, optax.adam(meta["learning_rate"]), unet_from_torch(recorded["weights"]))}
    step, losses = single_device_step(losses=losses_of), []
    for image, label in zip(
        recorded["images_nchw"].transpose(0, 1, 3, 4, 2), recorded["labels"].astype(np.int32), strict=True
    ):
        peers, measured = step(peers, {"image": image, "label": label, "valid": label != 255})
        losses.append(measured["unet/loss"])
    np.testing.assert_allclose(losses, recorded["losses"], rtol=1e-3)


@pytest.mark.usefixtures("four_devices")
def test_four_devices_are_one():
    """The shares hold from 0 to 90 % void, so a mean of per-device means would be another number.

    The first step agrees to rounding. After it the states differ by rounding, and a pre-activation that falls on the
    other side of 0 for that (as in tests/test_models.py) shows in the gradient norm as 4e-4.
    """
    one, four = single_device_step(), parallel.compile_train_step(losses=LOSSES, seed=0, accumulate_steps=1)
    single, replicated = fresh_peers(), parallel.replicate(fresh_peers())
    for seed, tolerance in ((0, 1e-5), (1, 2e-3), (2, 2e-3)):
        batch = random_batch(seed)
        single, measured = one(single, batch)
        replicated, all_measured = four(replicated, parallel.shard(batch))
        assert_close(parallel.unreplicate(all_measured), measured, rtol=tolerance)
        assert_close(
            parallel.unreplicate(replicated["unet"].params), single["unet"].params, rtol=tolerance, atol=tolerance / 10
        )
        stats = parallel.unreplicate(replicated["unet"].batch_stats)
        assert_close(stats, single["unet"].batch_stats, rtol=tolerance, atol=tolerance / 10)
    for leaf in jax.tree.leaves(replicated["unet"].params):
        assert len({np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}) == 1, "devices differ"


def test_slices_have_the_gradient_of_the_whole():
    """Against the sum of gradients taken slice by slice, with the BatchNorm statistics of each slice."""
    peers, batch = fresh_peers(), random_batch(7)
    updated, measured = single_device_step(accumulate_steps=4)(peers, batch)
    peer, pixels = peers["unet"], batch["valid"].sum()
    model, stats, total_loss = UNet(5, 4), peer.batch_stats, 0
    total_grads = jax.tree.map(jnp.zeros_like, peer.params)
    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch)

        def loss(params, part=part, stats=stats):
            logits, new = model.apply(
                {"params": params, "batch_stats": stats}, part["image"], train=True, mutable=["batch_stats"]
            )
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), part["label"][..., None] % 5, -1)[..., 0]
            return -jnp.where(part["valid"], log_p, 0).sum() / pixels, new["batch_stats"]

        (value, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(peer.params)
        total_loss, total_grads = total_loss + value, jax.tree.map(jnp.add, total_grads, grads)
    np.testing.assert_allclose(measured["unet/loss"], total_loss, rtol=1e-5)
    np.testing.assert_allclose(measured["unet/grad_norm"], optax.tree.norm(total_grads), rtol=1e-4)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, peer.params, total_grads)
    assert_close(updated["unet"].params, expected, rtol=1e-4, atol=1e-6)
    assert_close(updated["unet"].batch_stats, stats, rtol=1e-4, atol=1e-6)


def test_measurements_are_what_they_say():
    peers, batch = fresh_peers(), random_batch(1)
    updated, measured = single_device_step()(peers, batch)
    before, after = peers["unet"].params, updated["unet"].params
    np.testing.assert_allclose(measured["unet/param_norm"], optax.tree.norm(after), rtol=1e-6)
    difference = jax.tree.map(jnp.subtract, after, before)
    np.testing.assert_allclose(measured["unet/update_norm"], optax.tree.norm(difference), rtol=1e-3)
    np.testing.assert_allclose(measured["unet/update_norm"], 0.1 * measured["unet/grad_norm"], rtol=1e-5)
    assert measured["unet/loss"] == measured["unet/pixel"]
    assert updated["unet"].step == 1


def test_compiled_once_and_memory_reused():
    compilations = []

    def count(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    step = parallel.compile_train_step(losses=LOSSES, seed=0, accumulate_steps=1)
    peers = parallel.replicate(fresh_peers(optax.adam(1e-3)))
    batches = [parallel.shard(random_batch(seed)) for seed in range(4)]
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        donated = jax.tree.leaves(peers["unet"].params)
        for batch in batches:
            peers, _ = step(peers, batch)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(compilations) == 1
    assert all(leaf.is_deleted() for leaf in donated)


def test_unreplicated_copy_survives_the_next_step():
    step = parallel.compile_train_step(losses=LOSSES, seed=0, accumulate_steps=1)
    peers = parallel.replicate(fresh_peers())
    kept = parallel.unreplicate(peers["unet"].params)
    before = jax.tree.map(np.copy, kept)
    step(peers, parallel.shard(random_batch(0)))
    assert_close(kept, before, rtol=0)


def as_bytes(batch):
    """The batch as it travels, and as floats that NumPy made of the same bytes."""
    image = np.round(255 * batch["image"]).astype(np.uint8)
    floats = batch | {"image": np.divide(image, np.float32(255), dtype=np.float32)}
    return batch | {"image": image, "label": batch["label"].astype(np.uint8)}, floats


@pytest.mark.parametrize("to_float", [step.to_float, jax.jit(step.to_float)])
def test_bytes_become_what_numpy_divides(to_float):
    """All 256 values, bit for bit: `value / 255` under jit is another float for half of them."""
    image = np.tile(np.arange(256, dtype=np.uint8), 33).reshape(1, 33, 256, 1)
    expected = np.divide(image, np.float32(255), dtype=np.float32)
    assert to_float(jnp.asarray(image)).dtype == np.float32
    assert np.array_equal(to_float(jnp.asarray(image)), expected)
    assert np.array_equal(to_float(jnp.asarray(expected)), expected)  # a float is taken as it is


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_step_from_bytes_is_one_from_floats(accumulate_steps):
    """State and measurements, bit for bit, twice."""
    train_step = parallel.compile_train_step(losses=LOSSES, seed=0, accumulate_steps=accumulate_steps)
    ends = []
    for number in (0, 1):
        peers = parallel.replicate(fresh_peers())
        for seed in (0, 1):
            peers, measured = train_step(peers, parallel.shard(as_bytes(random_batch(seed))[number]))
        ends.append(parallel.unreplicate((peers["unet"].params, peers["unet"].batch_stats, measured)))
    assert_close(*ends, rtol=0)


def test_an_evaluation_of_bytes_is_one_of_floats():
    peers = parallel.replicate(fresh_peers())
    eval_step = parallel.compile_eval_step(num_classes=5)
    from_bytes, from_floats = (eval_step(peers, parallel.shard(batch)) for batch in as_bytes(random_batch(3)))
    assert_close(from_bytes, from_floats, rtol=0)


def test_eval_step_counts_every_valid_pixel_once():
    peers = parallel.replicate(fresh_peers())
    batch = random_batch(3)
    confusions, predictions = parallel.compile_eval_step(num_classes=5)(peers, parallel.shard(batch))
    confusion = parallel.unreplicate(confusions)["unet"]
    prediction = np.asarray(predictions["unet"]).reshape(batch["label"].shape)
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (batch["label"][batch["valid"]], prediction[batch["valid"]]), 1)
    assert np.array_equal(confusion, expected)


def test_shards_ahead_are_all_the_batches_in_order():
    batches = [{"image": np.full((4, 2), i)} for i in range(5)]
    seen = [int(np.asarray(b["image"])[0, 0, 0]) for b in parallel.shard_ahead(iter(batches))]
    assert seen == [0, 1, 2, 3, 4]


def test_one_image_is_gathered_as_all_are():
    x = parallel.shard({"x": np.random.default_rng(0).random((12, 3, 5))})["x"]
    for number, image in enumerate(parallel.gather(x)):
        assert np.array_equal(parallel.gather_image(x, number), image)


def test_shard_keeps_the_order_of_images():
    devices = jax.local_device_count()
    sharded = parallel.shard({"image": np.arange(2 * devices)})["image"]
    assert sharded.shape == (devices, 2)
    assert np.asarray(sharded).ravel().tolist() == list(range(2 * devices))
