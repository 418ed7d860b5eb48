"""Which steps are compiled: networks, losses and mutual learning at the study's widths, in training and evaluation.

In: nothing, or an experiment file's config. Out: `Step`s, by name, and what JAX lowers of them for given devices.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from jaxseg.config import choices_of, default, peer_sections, use_mutual_learning, use_rmi
from jaxseg.labels import LABELS
from jaxseg.studies.estimate import abstract_peers
from jaxseg.training import parallel

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Step:
    """A step to compile: "NETWORK[+LOSS]/DTYPE/train" or "/eval", and its config."""

    name: str
    config: ConfigDict
    training: bool


def network(name: str) -> ConfigDict:
    """The study's recipe with another network."""
    config = default()
    config.model.name = name
    return config


def with_loss(**fields: str) -> ConfigDict:
    """The study's U-Net with another loss."""
    config = default()
    config.loss.update(fields)
    return config


def with_rmi(pool: str) -> ConfigDict:
    config = default()
    use_rmi(config)
    config.loss.pool = pool
    return config


def mutual(updates: str) -> ConfigDict:
    config = default()
    use_mutual_learning(config)
    config.mutual.updates = updates
    return config


def recipes() -> dict[str, Callable[[], ConfigDict]]:
    """Name -> config: every network with cross-entropy, mutual learning, and every loss on the U-Net; the study's first."""
    made = {"unet": default, "unet+rmi": functools.partial(with_rmi, "max")}
    made |= {"deeplabv3": functools.partial(network, "deeplabv3"), "mutual": functools.partial(mutual, "together")}
    made |= {name: functools.partial(network, name) for name in choices_of("model.name") if name not in made}
    made |= {
        "mutual+in_turn": functools.partial(mutual, "in_turn"),
        "unet+rmi_unpooled": functools.partial(with_rmi, "none"),
    }
    for name in choices_of("loss.name"):
        if name not in ("pixel", "pixel_and_rmi"):
            made[f"unet+{name}"] = functools.partial(with_loss, name=name)
    return made | {
        f"unet+{pixel}": functools.partial(with_loss, pixel=pixel)
        for pixel in choices_of("loss.pixel")
        if pixel != "softmax"
    }


def every_step() -> list[Step]:
    """Training steps of all recipes, then evaluation steps of those with different networks; each in both dtypes."""
    steps = [step for name, make in recipes().items() for step in steps_of(name, make())]
    return sorted((step for step in steps if step.training or "+" not in step.name), key=lambda step: not step.training)


def steps_of(name: str, config: ConfigDict) -> list[Step]:
    """Training and evaluation of a config, in both dtypes whatever it says."""
    steps = []
    for training in (True, False):
        for dtype in DTYPES:
            typed = config.copy_and_resolve_references()
            for section in peer_sections(typed).values():
                section.model.dtype = dtype
            steps.append(Step(f"{name}/{dtype}/{'train' if training else 'eval'}", typed, training))
    return steps


def lower(step: Step, *, batch_size: int, devices: tuple | None = None) -> jax.stages.Lowered:
    """The step as the training loop compiles it, lowered.

    Args:
      step: what.
      batch_size: images of each device.
      devices: for which; None: this process's.
    """
    function, arguments = shaped_step(step, batch_size=batch_size, devices=devices)
    return function.lower(*arguments)


def shaped_step(step: Step, *, batch_size: int, devices: tuple | None = None) -> tuple[Callable, tuple]:
    """The compiled function of a step and the shapes of its arguments, over `devices`."""
    config = step.config.copy_and_resolve_references()
    config.train.batch_size = batch_size
    peers, losses, batch = abstract_peers(config)
    count = len(devices) if devices else jax.local_device_count()
    shapes = peers, jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), batch)
    if not step.training:
        return parallel.compile_eval_step(num_classes=LABELS[config.data.name].num_classes, devices=devices), shapes
    train = parallel.compile_train_step(
        losses=losses,
        seed=config.seed,
        accumulate_steps=config.train.accumulate_steps,
        updates=config.mutual.updates,
        skip_nonfinite=config.train.max_skipped_steps > 0,
        devices=devices,
    )
    return train.func, (*train.args, *shapes)
