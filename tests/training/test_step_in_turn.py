"""Peers updated one after the other in one step: PyTorch's losses, and the same as steps of one learner each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.losses.objective import LossFn
from jaxseg.models import UNet
from jaxseg.models.torch_weights import unet_from_torch
from jaxseg.training import parallel
from jaxseg.training.state import create_peer
from tests.conftest import draw
from tests.losses.test_mutual import CLASSES
from tests.steps import assert_close, random_batch, single_device_step
from tests.training.test_step_of_peers import ALL, PAIR, Small, losses_of, some_peers


def recorded_unet(spec: list[dict], *, seed: int, classes: int) -> dict:
    """Variables of a U-Net by the rules of the golden files' README; spec: of a U-Net of other classes.

    The module that losses_c7.npz is from has its parts, and so its state dict, in the order of
    scripts/torch_reference/unet.py, level by level; the spec has them in the order in which they are run.
    """
    levels = [f"{part}{level}" for level in (1, 2, 3, 4) for part in ("encoder", "upconv", "decoder")]
    place = {part: number for number, part in enumerate([*levels, "bottleneck", "conv"])}
    weights = {}
    for index, entry in enumerate(sorted(spec, key=lambda entry: place[entry["name"].split(".")[0]])):
        head = {"shape": [classes, *entry["shape"][1:]]} if entry["name"].startswith("conv.") else {}
        weights[entry["name"]] = draw(entry | head, [seed, index])
    return unet_from_torch(weights)


# The losses of losses_c7.npz, [teacher, student] of each step, once more by the same PyTorch program in float64 (2.14, CPU).
# The file's own turned out to be of float32: they are up to 1.6e-4 from these.
IN_FLOAT64 = {
    "together": [
        [2.863755186847, 2.778939732863],
        [2.822044422876, 2.784780807944],
        [2.801820268259, 2.709923656066],
        [2.777261286477, 2.694786358546],
    ],
    "in_turn": [
        [2.863755186847, 2.758267191138],
        [2.821710168896, 2.763745346268],
        [2.802045953270, 2.685874964066],
        [2.779286585640, 2.674670619181],
    ],
}


def losses_of_four_steps(golden, updates: str, dtype) -> np.ndarray:
    """[4, 2]: [teacher, student] of each step of losses_c7.npz."""
    recorded, spec = golden("losses_c7"), golden("unet_f8_c21")["state_dict_spec"]
    meta = recorded["meta"]
    peers = {}
    for name in PAIR:
        model = UNet(meta["classes"], meta["features"], axis_name=parallel.AXIS, dtype=dtype)
        variables = recorded_unet(spec, seed=meta[f"{name}_seed"], classes=meta["classes"])
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        peers[name] = create_peer(model, optax.adam(meta["adam"]), variables)
    step, found = single_device_step(losses=losses_of(*PAIR), updates=updates), []
    images = recorded["mutual_images_nchw"].transpose(0, 1, 3, 4, 2).astype(dtype)
    for image, label in zip(images, recorded["mutual_labels"].astype(np.int32), strict=True):
        peers, measured = step(peers, {"image": image, "label": label, "valid": label != 255})
        found.append([measured["teacher/loss"], measured["student/loss"]])
    return np.array(found)


UPDATES = pytest.mark.parametrize("updates", ["together", "in_turn"])


@UPDATES
def test_four_steps_of_two_unets_are_pytorchs(golden, updates):
    """A last bit of a weight, changed by chance, moves these losses by 2e-5 in the second and third step and by 1e-4 to 4e-4
    in the fourth, whichever framework computes them: so the fourth is held to 5e-4, the others to 1e-4.
    """
    found, expected = losses_of_four_steps(golden, updates, np.float32), golden("losses_c7")[f"mutual_{updates}_losses"]
    np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-4)
    np.testing.assert_allclose(found[3], expected[3], rtol=5e-4)


@pytest.mark.slow
@UPDATES
def test_in_float64_four_steps_are_pytorchs_to_rounding(golden, updates):
    """Slow: compiles two U-Nets forward and backward, in turn twice, in float64."""
    with jax.enable_x64(True):
        found = losses_of_four_steps(golden, updates, np.float64)
    np.testing.assert_allclose(found, IN_FLOAT64[updates], rtol=1e-9)
    np.testing.assert_allclose(found, golden("losses_c7")[f"mutual_{updates}_losses"], rtol=2e-4)


def by_single_steps(peers, batch, losses, accumulate_steps=1):
    """The same by steps in which all learn at once, of which every time one peer's update is kept, the reported last."""
    step = single_device_step(accumulate_steps, losses)
    measured, now = {}, peers
    for name in (*list(losses)[1:], next(iter(losses))):
        stepped, terms = step(now, batch)
        measured |= {key: value for key, value in terms.items() if key.startswith(f"{name}/")}
        now = {
            other: stepped[other] if other == name else peer.replace(batch_stats=stepped[other].batch_stats)
            for other, peer in now.items()
        }
        now = {other: peer.replace(step=peers[other].step) for other, peer in now.items()}  # as counted before
    return {name: peer.replace(step=peer.step + 1) for name, peer in now.items()}, measured


@pytest.mark.parametrize(("names", "accumulate_steps"), [(PAIR, 1), (PAIR, 2), (ALL, 1)])
def test_a_step_in_turn_is_a_step_for_each(names, accumulate_steps):
    """Teacher, third, student: each by new predictions of the ones before; statistics move in every turn."""
    peers, losses = some_peers(*names), losses_of(*names)
    step = single_device_step(accumulate_steps, losses, updates="in_turn")
    by_hand = peers
    for seed in range(2):
        batch = random_batch(seed, classes=CLASSES)
        by_hand, expected = by_single_steps(by_hand, batch, losses, accumulate_steps)
        peers, measured = step(peers, batch)
        assert_close(measured, expected, rtol=1e-5)
        leaves = [
            {name: (peer.step, peer.params, peer.batch_stats) for name, peer in of.items()} for of in (peers, by_hand)
        ]
        assert_close(*leaves, rtol=1e-5, atol=1e-6)


def test_only_the_first_in_turn_is_updated_as_together():
    peers, losses, batch = some_peers(*PAIR), losses_of(*PAIR), random_batch(0, classes=CLASSES)
    together, _ = single_device_step(losses=losses)(peers, batch)
    in_turn, _ = single_device_step(losses=losses, updates="in_turn")(peers, batch)
    assert_close(in_turn["teacher"].params, together["teacher"].params, rtol=1e-5, atol=1e-6)
    heads = [np.asarray(found["student"].params["head"]["kernel"]) for found in (together, in_turn)]
    assert np.abs(heads[0] - heads[1]).max() > 1e-6


def test_statistics_move_once_a_turn_unless_frozen():
    """mean after two passes of one batch by weights that stay: m (1 - 0.9²) from 0, beside m (1 - 0.9) of one pass."""
    losses, batch = losses_of(*PAIR), random_batch(0, classes=CLASSES)
    held = {
        name: peer.replace(tx=optax.set_to_zero(), opt_state=optax.EmptyState())
        for name, peer in some_peers(*PAIR).items()
    }
    held["teacher"] = held["teacher"].replace(freeze_batchnorm=True)
    once, _ = single_device_step(losses=losses)(held, batch)
    twice, _ = single_device_step(losses=losses, updates="in_turn")(held, batch)
    means = [jax.tree.leaves_with_path(peers["student"].batch_stats) for peers in (once, twice)]
    pairs = [(a, b) for (path, a), (_, b) in zip(*means, strict=True) if "mean" in str(path)]
    assert pairs
    for one, two in pairs:
        np.testing.assert_allclose(two, 1.9 * one, rtol=1e-5, atol=1e-7)
    for peers in (once, twice):
        jax.tree.map(np.testing.assert_array_equal, peers["teacher"].batch_stats, held["teacher"].batch_stats)


def test_dropout_is_drawn_anew_in_every_turn():
    """The teacher's turn is the first pass and draws as one pass does; the student's is the second. Weights stay."""
    networks = {name: Small(4, dropout=0.5, axis_name=parallel.AXIS) for name in PAIR}
    peers = {
        name: peer.replace(tx=optax.set_to_zero(), opt_state=optax.EmptyState())
        for name, peer in some_peers(*PAIR, **networks).items()
    }
    losses, batch = losses_of(*PAIR), random_batch(0, classes=CLASSES)
    _, together = single_device_step(losses=losses)(peers, batch)
    _, in_turn = single_device_step(losses=losses, updates="in_turn")(peers, batch)
    np.testing.assert_allclose(in_turn["teacher/loss"], together["teacher/loss"], rtol=1e-6)
    assert abs(in_turn["student/pixel"] - together["student/pixel"]) > 1e-4


def test_an_average_moves_once_a_step_to_what_is_there_in_the_end():
    """The teacher's, which has its turn first: its statistics of after the student's turn are averaged. d = 1/10."""
    peers, batch = some_peers(*PAIR), random_batch(0, classes=CLASSES)
    start = {"params": peers["teacher"].params, "batch_stats": peers["teacher"].batch_stats}
    peers["teacher"] = peers["teacher"].replace(ema=jax.tree.map(jnp.copy, start), ema_decay=0.9)
    teacher = single_device_step(losses=losses_of(*PAIR), updates="in_turn")(peers, batch)[0]["teacher"]
    now = {"params": teacher.params, "batch_stats": teacher.batch_stats}
    assert_close(teacher.ema, jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start, now), rtol=1e-5, atol=1e-6)


class NotFinite(LossFn):
    def __call__(self, logits, batch, **_):
        return jnp.nan * logits.sum(), {}


def test_a_last_turn_that_is_not_finite_takes_all_back():
    """The teacher's update had been made by then."""
    peers, losses = some_peers(*PAIR), losses_of(*PAIR)
    losses["student"] = NotFinite(losses["student"].loss, losses["student"].mutual)
    step = single_device_step(losses=losses, updates="in_turn", skip_nonfinite=True)
    kept, measured = step(peers, random_batch(0, classes=CLASSES))
    assert measured["skipped"] == 1
    assert np.isfinite(measured["teacher/loss"])
    for name in PAIR:
        assert kept[name].step == 1
        jax.tree.map(np.testing.assert_array_equal, kept[name].replace(step=peers[name].step), peers[name])


def test_beside_teachers_that_are_not_trained_there_is_one_turn():
    """Bit for bit what `together` does."""
    peers, batch = some_peers(*PAIR), random_batch(0, classes=CLASSES)
    results = [
        single_device_step(losses=losses_of("student"), updates=updates)(peers, batch)
        for updates in ("together", "in_turn")
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
