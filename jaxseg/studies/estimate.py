"""What a run will take, before it is started: arithmetic, time and memory of its training step, without running it.

In: a config. Out: an `Estimate`. Nothing is compiled: the operations are counted in the traced program, before fusion, and
the memory is that of the arrays which the backward pass keeps, beside parameters and optimiser states.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg.training import parallel
from jaxseg.training.peers import create_peers, labels_of_run, make_losses, without_init
from jaxseg.training.state import Peers
from jaxseg.training.step import decode_batch, total_loss, turns


@dataclasses.dataclass(frozen=True)
class Device:
    """What is assumed to be sustained. Not measured: the dry run prints these beside what it makes of them."""

    name: str
    flops: float  # per second
    bytes: float  # per second, of arrays read and written before fusion


# h100: a third of one H100 SXM's memory rate and a tenth of its TF32 rate (3.35 TB/s and 495 TFLOP/s, its data sheet), a
# guess. cpu: one core; the runs of configs/study/cpu.toml moved 9.4 to 11.6 GB/s at 20 to 26 GFLOP/s.
DEVICES = {"h100": Device("one H100", 50e12, 1.1e12), "cpu": Device("one CPU core", 50e9, 10e9)}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one training step of the whole batch on one device."""

    flops: float
    bytes_moved: float
    bytes_needed: int

    def seconds(self, device: Device) -> float:
        """The larger of arithmetic and memory traffic at the device's rates."""
        return max(self.flops / device.flops, self.bytes_moved / device.bytes)


def estimate(config: ConfigDict) -> Estimate:
    peers, losses, batch = abstract_peers(config)
    updates = config.mutual.updates
    step = parallel.compile_train_step(losses=losses, seed=0, accumulate_steps=1, updates=updates)
    shards = jax.tree.map(lambda x: jax.ShapeDtypeStruct((jax.local_device_count(), *x.shape), x.dtype), batch)
    counted = step.func.lower(*step.args, peers, shards).cost_analysis()
    needed = max(kept_bytes(peers, losses, batch, names) for names in turns(losses, updates)) + size(peers)
    return Estimate(counted["flops"], counted["bytes accessed"], needed)


def abstract_peers(config: ConfigDict) -> tuple[Peers, dict, dict]:
    """Shapes of peers and batch, and the peers' losses; nothing is computed."""
    px = config.data.crop_px
    num_classes = labels_of_run(config, None).num_classes

    def init():
        return create_peers(without_init(config), num_classes=num_classes, steps=1)[0]

    shape = (config.train.batch_size, px, px)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "valid": jax.ShapeDtypeStruct(shape, bool),
    }
    return jax.eval_shape(init), make_losses(config), batch


def kept_bytes(peers: Peers, losses: dict, batch: dict, names: Sequence[str]) -> int:
    """Bytes of what the forward passes leave for the backward one of the peers `names`: the residuals of `jax.vjp`."""

    def residuals(peers, batch):
        def objective(params):
            one = jnp.float32(1)
            fixed = {"losses": losses, "rng": jax.random.key(0), "num_parts": 1, "axis_name": parallel.AXIS}
            fixed |= {"pixels": one, "weights": dict.fromkeys(losses, one)}
            batch_stats = {n: peers[n].batch_stats for n in losses}
            return total_loss(params, batch_stats, decode_batch(batch), peers=peers, **fixed)

        return jax.vjp(objective, {name: peers[name].params for name in names}, has_aux=True)[1]

    on_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), (peers, batch))
    return size(jax.eval_shape(jax.vmap(residuals, axis_name=parallel.AXIS), *on_one))


def size(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
