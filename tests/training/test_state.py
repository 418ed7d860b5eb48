"""The moving average of a network's state, and BatchNorm frozen: by closed forms and by hand, in the step and beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import default, use_mutual_learning
from jaxseg.config_checks import check_batch_statistics, validate
from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.training import parallel
from jaxseg.training.optimizers import make_optimizer
from jaxseg.training.state import TrainState, averaged, create_peer, update_average
from jaxseg.training.step import forward
from tests.configs import changed
from tests.losses.test_mutual import CLASSES
from tests.steps import LOSSES, assert_close, random_batch, single_device_step
from tests.training.test_step_of_peers import PAIR, TXS, Small, losses_of, some_peers

NETWORK = Small(4, axis_name=parallel.AXIS)


def counting_peer(decay: float) -> TrainState:
    """Its parameter is 0, its statistic 0."""
    peer = TrainState.create(apply_fn=None, params={"w": jnp.zeros(1)}, tx=optax.identity(), batch_stats={})
    start = {"params": {"w": jnp.zeros(1)}, "batch_stats": {"mean": jnp.zeros(1)}}
    return peer.replace(ema=start, ema_decay=decay)


def after_constant_updates(peer: TrainState, steps: int) -> TrainState:
    """The parameter is 1, 2, 3, …, the statistic ten times that."""
    for step in range(steps):
        now = {"params": {"w": jnp.full(1, step + 1.0)}, "batch_stats": {"mean": jnp.full(1, 10.0 * (step + 1))}}
        peer = update_average(peer.replace(**now), step=jnp.asarray(step, jnp.int32))
    return peer


def test_average_of_constant_updates_has_a_closed_form():
    """e_t = d e_{t-1} + (1 - d) t from e_0 = 0 is t - d (1 - d^t) / (1 - d): behind by d / (1 - d) in the end. d = 0.1 is
    what the bound on d allows from the first update on."""
    d, steps = 0.1, 12
    peer = after_constant_updates(counting_peer(d), steps)
    expected = steps - d * (1 - d**steps) / (1 - d)
    np.testing.assert_allclose(peer.ema["params"]["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(peer.ema["batch_stats"]["mean"], 10 * expected, rtol=1e-6)
    assert averaged(peer).params is peer.ema["params"]
    assert averaged(peer).batch_stats is peer.ema["batch_stats"]
    assert averaged(peer).ema is None


def test_average_follows_early_on():
    """d is 1/10, 2/11, 3/12, … until that is more than 0.5, from the update behind eight others on."""
    expected = 0.0
    for step in range(20):
        d = min(0.5, (1 + step) / (10 + step))
        assert (d == 0.5) == (step >= 8)
        expected = d * expected + (1 - d) * (step + 1)
    peer = after_constant_updates(counting_peer(0.5), 20)
    np.testing.assert_allclose(peer.ema["params"]["w"], expected, rtol=1e-6)


def test_without_average_the_state_is_as_before():
    """No leaf more: checkpoints of before are restored."""
    variables = {"params": {"w": jnp.zeros(1)}, "batch_stats": {"mean": jnp.zeros(1)}}
    without, with_one = (create_peer(NETWORK, optax.sgd(0.1), variables, ema_decay=decay) for decay in (0.0, 0.9))
    assert len(jax.tree.leaves(without)) == 3  # step, parameter, statistic
    assert len(jax.tree.leaves(with_one)) == 5
    assert averaged(without) is without
    assert update_average(without, step=without.step) is without


def averaging(peers, decay):
    """The same peers, the first of them with an average."""
    name = next(iter(peers))
    variables = {"params": peers[name].params, "batch_stats": peers[name].batch_stats}
    start = jax.tree.map(jnp.copy, variables)
    return peers | {name: peers[name].replace(ema=start, ema_decay=decay)}


def test_the_step_averages_what_it_would_train_anyway():
    """Two peers that learn from each other, one with an average: all losses and weights are those without it, bit for
    bit; the average is that of the states in between, by hand; and scores are by it."""
    batches = [random_batch(seed, classes=CLASSES) for seed in range(3)]
    plain, peers = some_peers(*PAIR), averaging(some_peers(*PAIR), 0.15)
    step = single_device_step(losses=losses_of(*PAIR))
    expected = jax.tree.map(np.float64, peers["student"].ema)
    for count, batch in enumerate(batches):
        plain, plain_measured = step(plain, batch)
        peers, measured = step(peers, batch)
        assert measured == plain_measured
        d = min(0.15, (1 + count) / (10 + count))
        now = {"params": plain["student"].params, "batch_stats": plain["student"].batch_stats}
        expected = jax.tree.map(lambda e, x, d=d: d * e + (1 - d) * np.asarray(x), expected, now)
    live = peers["student"].replace(ema=None, ema_decay=0.0)
    assert all(map(np.array_equal, jax.tree.leaves(live), jax.tree.leaves(plain["student"])))
    assert_close(peers["student"].ema, expected, rtol=1e-5, atol=1e-6)
    score = parallel.compile_eval_step(num_classes=CLASSES)
    batch = parallel.shard(batches[0])
    by_average, _ = score(parallel.replicate(peers), batch)
    by_hand, _ = score(parallel.replicate(peers | {"student": averaged(peers["student"])}), batch)
    by_weights, _ = score(parallel.replicate(plain), batch)
    assert np.array_equal(by_average["student"], by_hand["student"])
    assert not np.array_equal(by_average["student"], by_weights["student"])
    assert np.array_equal(by_average["teacher"], by_weights["teacher"])


def recipe_peer():
    """With all that changes an update: AdamW by a mask, clipping, warm-up, and an average."""
    optim = default().optim
    optim.update({"name": "adamw", "weight_decay": 0.1, "clip_norm": 0.05, "warmup_steps": 2, "schedule": "step"})
    variables = jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return {"unet": create_peer(NETWORK, make_optimizer(optim, steps=4), variables, ema_decay=0.9)}


@pytest.mark.usefixtures("four_devices")
def test_four_devices_are_one_with_clipping_and_average():
    """And a step that is skipped leaves the average as it was; the memory of all is reused."""
    options = {"losses": LOSSES, "seed": 0, "accumulate_steps": 1, "skip_nonfinite": True}
    one, four = single_device_step(), parallel.compile_train_step(**options)
    single, replicated = recipe_peer(), parallel.replicate(recipe_peer())
    for seed in range(2):
        batch = random_batch(seed, classes=CLASSES)
        single, measured = one(single, batch)
        given = replicated
        replicated, _ = four(given, parallel.shard(batch))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert measured["unet/grad_norm"] > 0.05  # of before clipping
    found = parallel.unreplicate(replicated)
    assert_close(found["unet"].params, single["unet"].params, rtol=1e-4, atol=1e-5)
    assert_close(found["unet"].ema, single["unet"].ema, rtol=1e-4, atol=1e-5)
    batch["image"][0, 0, 0, 0] = np.nan
    replicated, measured = four(replicated, parallel.shard(batch))
    assert measured["skipped"] == 1
    kept = parallel.unreplicate(replicated)
    assert kept["unet"].step == 3
    jax.tree.map(np.testing.assert_array_equal, kept["unet"].ema, found["unet"].ema)


# ---- BatchNorm frozen


def random_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), tree)


def test_frozen_batchnorm_uses_its_statistics_and_keeps_them():
    """The gradient is that of a prediction, the scale and bias of BatchNorm included; slices then are the whole."""
    (peer,) = some_peers("student").values()
    peer = peer.replace(freeze_batchnorm=True, batch_stats=random_like(peer.batch_stats))
    batch = random_batch(1, classes=CLASSES)
    valid, pixels = batch["valid"], batch["valid"].sum()

    def loss(params):
        variables = {"params": params, "batch_stats": peer.batch_stats}
        logits = Small(4).apply(variables, batch["image"], train=False)
        return -jax.nn.log_softmax(logits)[valid, batch["label"][valid]].sum() / pixels

    grads = jax.grad(loss)(peer.params)
    assert np.abs(grads["ConvNorm_0"]["norm"]["scale"]).max() > 0
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, peer.params, grads)  # TXS["student"]
    assert TXS["student"] is peer.tx
    for parts in (1, 4):
        updated, measured = single_device_step(parts, losses_of("student"))({"student": peer}, batch)
        np.testing.assert_allclose(measured["student/loss"], loss(peer.params), rtol=1e-5)
        assert_close(updated["student"].params, expected, rtol=1e-4, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, updated["student"].batch_stats, peer.batch_stats)


@pytest.mark.parametrize("remat", [False, True])
def test_frozen_batchnorm_of_a_whole_network(remat):
    """Also within blocks that are computed again: the U-Net in training is the U-Net that predicts."""
    network = UNet(CLASSES, 1, remat=remat)
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    variables = {"params": random_like(shapes["params"]), "batch_stats": random_like(shapes["batch_stats"])}
    peer = create_peer(network, optax.identity(), variables, freeze_batchnorm=True)
    logits, _, stats = jax.jit(lambda v, x: forward(peer, v, x, jax.random.key(0)))(variables, image)
    np.testing.assert_allclose(logits, jax.jit(network.apply)(variables, image), rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_dropout_stays_where_batchnorm_is_frozen():
    """It is a training pass all the same."""
    network = Small(4, dropout=0.5, axis_name=parallel.AXIS)
    (peer,) = some_peers("student", student=network).values()
    batch = random_batch(1, classes=CLASSES)
    losses = losses_of("student")
    frozen = {"student": peer.replace(freeze_batchnorm=True)}
    dropped = single_device_step(losses=losses)(frozen, batch)[1]
    whole = frozen["student"].replace(apply_fn=NETWORK.apply)
    kept = single_device_step(losses=losses)({"student": whole}, batch)[1]
    assert abs(dropped["student/loss"] - kept["student/loss"]) > 1e-3


@pytest.mark.parametrize("fields", [{}, {"model__init_from": "w.pth", "model__init_parts": "backbone"}])
def test_statistics_of_no_data_are_not_frozen(fields):
    deeplabv3 = {"model__name": "deeplabv3", "model__freeze_batchnorm": True}
    with pytest.raises(InputError, match=r"config\.model\.freeze_batchnorm=True with config\.model\.init_from="):
        validate(changed(**deeplabv3, **fields))
    validate(changed(**deeplabv3, model__init_from="w.pth"))


def test_frozen_batchnorm_may_see_one_image():
    """A single value is normalized as any other; the other network's are not frozen."""
    config = default()
    use_mutual_learning(config)
    config.train.batch_size = 1
    config.peers.teacher.model.freeze_batchnorm = True
    check_batch_statistics(config)
    config.data.crop_px = 16
    with pytest.raises(InputError, match="of student"):
        check_batch_statistics(config)
