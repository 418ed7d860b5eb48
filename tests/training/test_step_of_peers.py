"""The step of several peers: each by its own gradient, undisturbed by the others, one device as four."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.losses.mutual import mutual_kl
from jaxseg.losses.objective import make_loss
from jaxseg.models import DeepLabV3, UNet
from jaxseg.models.layers import ConvNorm
from jaxseg.training import parallel
from jaxseg.training.state import create_peer
from tests.configs import changed
from tests.losses.test_mutual import CLASSES
from tests.steps import assert_close, random_batch, single_device_step


class Small(nn.Module):
    """A network that compiles in a second: 3×3, BatchNorm, dropout, 1×1, and an auxiliary head."""

    features: int
    dropout: float = 0.0
    auxiliary: bool = False
    axis_name: str | None = None
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(ConvNorm(self.features, 3, axis_name=self.axis_name)(image, train=train))
        if self.auxiliary:
            self.sow("auxiliary", "logits", nn.Dense(self.num_classes, name="auxiliary_head")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


TXS = {"student": optax.sgd(0.1), "teacher": optax.adam(1e-3), "third": optax.sgd(0.05, momentum=0.9)}


NETWORKS = {
    "student": Small(4, axis_name=parallel.AXIS),
    "teacher": Small(6, auxiliary=True, axis_name=parallel.AXIS),
    "third": Small(3, axis_name=parallel.AXIS),
}


def some_peers(*names, **networks):
    """Peers of NETWORKS, or of `networks` where they are named there; "third" is for RMI."""
    peers = {}
    for i, name in enumerate(names):
        network = (NETWORKS | networks)[name]
        variables = jax.jit(network.init)(jax.random.key(i), jnp.zeros((1, 32, 32, 3)))
        peers[name] = create_peer(network, TXS[name], variables)
    return peers


def losses_of(*names, **mutual):
    config = changed(**{f"mutual__{key}": value for key, value in mutual.items()})
    rmi = changed(loss__name="pixel_and_rmi", loss__pixel="sigmoid", loss__pool="none").loss
    return {name: make_loss(rmi if name == "third" else config.loss, config.mutual) for name in names}


ALL, PAIR = ("student", "teacher", "third"), ("student", "teacher")


REAL = {
    "student": UNet(CLASSES, 4, axis_name=parallel.AXIS),
    "teacher": DeepLabV3(CLASSES, "resnet14", 4, auxiliary=True, axis_name=parallel.AXIS),
}


@pytest.mark.slow
def test_at_weight_0_each_trains_as_alone_bit_for_bit():
    """The study's two networks, dropout and auxiliary head included; the divergence is still measured.

    Slow: compiles the study's two networks together, and each alone.
    """
    start, batches = some_peers(*PAIR, **REAL), [random_batch(seed, classes=CLASSES) for seed in range(3)]
    step, together = single_device_step(losses=losses_of(*PAIR, weight=0.0)), start
    for batch in batches:
        together, measured = step(together, batch)
    assert measured["student/kl"] > 0.01
    np.testing.assert_allclose(
        measured["teacher/loss"], measured["teacher/pixel"] + 0.5 * measured["teacher/auxiliary"], rtol=1e-6
    )
    for name in PAIR:
        step, alone = single_device_step(losses=losses_of(name)), {name: start[name]}
        for batch in batches:
            alone, _ = step(alone, batch)
        for (path, a), b in zip(jax.tree.leaves_with_path(alone[name]), jax.tree.leaves(together[name]), strict=True):
            assert np.array_equal(a, b), (name, path)


@pytest.fixture(scope="module")
def stepped():
    """Three peers, a batch, and what a step makes of them."""
    peers, batch = some_peers(*ALL), random_batch(0, classes=CLASSES)
    updated, measured = single_device_step(losses=losses_of(*ALL, weight=0.7, temperature=2.0))(peers, batch)
    return peers, batch, updated, measured


def forward(model, peer, image, *, train):
    variables = {"params": peer.params, "batch_stats": peer.batch_stats}
    return model.apply(variables, image, train=train, mutable=["batch_stats"])[0]


def test_gradient_of_each_is_that_of_its_own_loss(stepped):
    """Student by hand: CE + 0.7 · mean of the two KL at T = 2, the others' logits being arrays. SGD shows the gradient."""
    peers, batch, updated, measured = stepped
    student = peers["student"]
    valid, pixels = batch["valid"], batch["valid"].sum()
    logits_of_others = []
    for name, features in (("teacher", 6), ("third", 3)):
        logits_of_others.append(forward(Small(features), peers[name], batch["image"], train=True))

    def loss(params):
        logits = forward(Small(4), student.replace(params=params), batch["image"], train=True)
        entropy = -jax.nn.log_softmax(logits)[valid, batch["label"][valid]].sum() / pixels
        log_q, total = jax.nn.log_softmax(logits / 2), 0
        for other in logits_of_others:
            p = jax.nn.softmax(other / 2)
            total += 4 * (p * (jnp.log(p) - log_q)).sum(-1)[valid].sum() / pixels
        return entropy + 0.7 * total / 2, total / 2

    (value, kl), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(student.params)
    np.testing.assert_allclose(measured["student/kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(measured["student/loss"], value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, student.params, grads)
    assert_close(updated["student"].params, expected, rtol=1e-4, atol=1e-7)


def test_every_peer_learns_by_its_own_terms(stepped):
    _, _, updated, measured = stepped
    terms = {name: {key.split("/")[1] for key in measured if key.startswith(name)} for name in ALL}
    common = {"loss", "pixel", "kl", "grad_norm", "param_norm", "update_norm"}
    assert terms["student"] == common
    assert terms["teacher"] == common | {"auxiliary"}
    assert terms["third"] == common | {"rmi", "rmi_present"}
    m = {key: float(value) for key, value in measured.items()}
    np.testing.assert_allclose(m["student/loss"], m["student/pixel"] + 0.7 * m["student/kl"], rtol=1e-6)
    teacher = m["teacher/pixel"] + 0.5 * m["teacher/auxiliary"] + 0.7 * m["teacher/kl"]
    np.testing.assert_allclose(m["teacher/loss"], teacher, rtol=1e-6)
    third = 0.5 * m["third/pixel"] + 0.5 * m["third/rmi"] + 0.7 * m["third/kl"]
    np.testing.assert_allclose(m["third/loss"], third, rtol=1e-6)
    assert {name: int(peer.step) for name, peer in updated.items()} == dict.fromkeys(ALL, 1)


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("updates", ["together", "in_turn"])
def test_four_devices_are_one(updates):
    """Three steps of three peers with RMI among them; shares hold 0 to 90 % void, as in tests/training/test_step.py."""
    losses = losses_of(*ALL, weight=1.0)
    one = single_device_step(losses=losses, updates=updates)
    four = parallel.compile_train_step(losses=losses, seed=0, accumulate_steps=1, updates=updates)
    single = some_peers(*ALL)
    replicated = parallel.replicate(single)
    for seed in range(3):
        batch = random_batch(seed, classes=CLASSES)
        single, measured = one(single, batch)
        replicated, all_measured = four(replicated, parallel.shard(batch))
        assert_close(parallel.unreplicate(all_measured), measured, rtol=1e-4)
        for name in ALL:
            assert_close(parallel.unreplicate(replicated[name].params), single[name].params, rtol=1e-4, atol=1e-5)
            stats = parallel.unreplicate(replicated[name].batch_stats)
            assert_close(stats, single[name].batch_stats, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("updates", ["together", "in_turn"])
def test_all_peers_are_updated_in_one_donated_call(updates):
    step = parallel.compile_train_step(losses=losses_of(*ALL), seed=0, accumulate_steps=1, updates=updates)
    before = some_peers(*ALL)
    peers = parallel.replicate(before)
    given = jax.tree.leaves({name: (peer.params, peer.opt_state) for name, peer in peers.items()})
    updated, _ = step(peers, parallel.shard(random_batch(0, classes=CLASSES)))
    assert all(leaf.is_deleted() for leaf in given)
    for name in ALL:
        moved = jax.tree.map(
            lambda a, b: np.any(a != b), before[name].params, parallel.unreplicate(updated[name].params)
        )
        assert sum(jax.tree.leaves(moved)) >= 5, name


def test_a_frozen_teacher_teaches_and_stays():
    """KL against its predictions with running statistics; its variables unchanged, its forward pass changes nothing."""
    peers, batch = some_peers(*PAIR, teacher=Small(6, dropout=0.5)), random_batch(0, classes=CLASSES)
    teacher = peers["teacher"].replace(tx=optax.identity(), opt_state=optax.identity().init({}))
    peers = {"student": peers["student"], "teacher": teacher}
    updated, measured = single_device_step(losses=losses_of("student"))(peers, batch)
    assert_close(updated["teacher"].params, teacher.params, rtol=0)
    assert_close(updated["teacher"].batch_stats, teacher.batch_stats, rtol=0)
    assert int(updated["teacher"].step) == 1
    assert not [key for key in measured if key.startswith("teacher")]
    logits = {
        "student": forward(Small(4), peers["student"], batch["image"], train=True),
        "teacher": forward(Small(6), teacher, batch["image"], train=False),
    }
    expected = mutual_kl(logits["student"], logits["teacher"], batch["label"], pixels="valid")
    np.testing.assert_allclose(measured["student/kl"], expected, rtol=1e-4)


def test_peers_of_other_shapes_are_refused_before_compilation():
    peers = some_peers("student", "third", third=Small(3, num_classes=CLASSES + 1))
    with pytest.raises(ValueError, match=r"their logits are student \[8, 32, 32, 5\], third \[8, 32, 32, 6\]"):
        single_device_step(losses=losses_of("student", "third"))(peers, random_batch(0, classes=CLASSES))
