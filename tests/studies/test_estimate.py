"""Arithmetic and memory of a step, estimated before it is compiled."""

import jax

from jaxseg.studies.estimate import DEVICES, abstract_peers, estimate
from scripts.bench.memory import needed_bytes


def convolution_flops(features: int, classes: int, px: int, batch: int) -> float:
    """2 · multiply-adds of the U-Net's convolutions, forward and both gradients (none for the image), by hand.

    A 3×3 kernel meets (3 side - 2)² pairs of pixels on a padded square.
    """
    levels = [(features * 2**level, px // 2**level) for level in range(5)]
    total, before = 0.0, 3
    for channels, side in levels:
        total += (3 * side - 2) ** 2 * (before * channels * (2 if before == 3 else 3) + channels**2 * 3)
        before = channels
    for channels, side in levels[:-1]:
        total += 3 * (2 * side**2 * channels**2 + (3 * side - 2) ** 2 * 3 * channels**2)  # upsampling, two convolutions
    return batch * 2 * (total + 3 * px**2 * features * classes)


def test_estimate_counts_the_convolutions(tiny):
    """Normalisation, activations, loss and Adam come on top, a few operations a value: 3 to 15 % at 16 features."""
    tiny.model.features = 16
    found = estimate(tiny)
    counted = convolution_flops(16, 11, tiny.data.crop_px, tiny.train.batch_size)
    assert 1.03 < found.flops / counted < 1.15
    assert found.seconds(DEVICES["cpu"]) == max(found.flops / 50e9, found.bytes_moved / 10e9)


def test_estimated_memory_is_near_the_compiled_programs(tiny_mutual):
    """From a bit below to a third above: a compiler keeps fewer arrays, and some in pieces."""
    tiny_mutual.model.features = 8
    found = estimate(tiny_mutual).bytes_needed
    assert 0.9 < found / needed_bytes(tiny_mutual, tiny_mutual.train.batch_size) < 1.4
    peers, losses, _ = abstract_peers(tiny_mutual)
    assert set(losses) == {"student", "teacher"}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(peers))


def test_a_step_in_turn_computes_more_and_keeps_less(tiny_mutual):
    """Two forward passes more, a third of the arithmetic each way; and one network's arrays at a time for the backward one."""
    together = estimate(tiny_mutual)
    tiny_mutual.mutual.updates = "in_turn"
    in_turn = estimate(tiny_mutual)
    assert 1.2 < in_turn.flops / together.flops < 1.5
    assert in_turn.bytes_needed < together.bytes_needed
