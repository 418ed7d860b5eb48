"""What a machine lacks, as a sentence on what to change: memory of the device, room on the disk, another host.

In: exceptions of JAX and of the system. Out: `ResourceError` and `HostLostError`, whose messages name the fields.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxseg.config import peer_path, peer_sections
from jaxseg.errors import DISK_FULL, HostLostError, InputError, ResourceError
from jaxseg.room import SHARED_MEMORY

LOST_WORKER = "Worker process was terminated unexpectedly"  # grain's words


@contextlib.contextmanager
def failures_as_errors(config: ConfigDict, folder: Path, *, predicting: bool = False) -> Iterator[None]:
    """What the machine lacks, as a sentence on what to change: memory of the device, room on the disk, another host.

    folder: where results are written. predicting: with networks as they are, not training them.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            told = too_large_to_predict(config) if predicting else too_large_to_train(config)
            reason = str(error).splitlines()[0][:200] if str(error) else "of the host"
            raise ResourceError(f"out of memory ({reason}). {told}") from error
        if jax.process_count() > 1:
            raise HostLostError(
                f"another host is gone: this one, {jax.process_index()} of {jax.process_count()}, was waiting for it. What it"
                " wrote last says why. Start all of them again; the run goes on from the last checkpoint. JAX says:"
                f" {str(error)[:300]}"
            ) from error
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if LOST_WORKER in str(error):
            raise ResourceError(
                f"a process that reads images is gone ({error}). Exit code -7 says that {SHARED_MEMORY} is full, -9 that the"
                f" machine had no memory left. Now: config.data.workers={config.data.workers}; use fewer, or 0."
            ) from error
        if not is_full_disk(error):
            raise
        raise ResourceError(
            f"no room on a disk ({str(error)[-300:]}). What is written goes to {folder} and to config.data.dir,"
            f" {config.data.dir}. Make room, and give the same command again: training goes on from the last checkpoint."
        ) from error


def is_full_disk(error: Exception) -> bool:
    """Whether a file found no room: by the system's number, or where tensorstore (ValueError) and array_record
    (RuntimeError) quote what the system said."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    told = isinstance(error, (InputError, ResourceError))  # already a sentence
    return not told and any(os.strerror(number) in str(error) for number in DISK_FULL)


def too_large_to_predict(config: ConfigDict) -> str:
    """What a pass is made of, and what makes it smaller."""
    return (
        f"Now: config.eval.batch_size={config.eval.batch_size}. Smaller: a smaller config.eval.batch_size, --window_px (the"
        " image in windows), --resize=run."
    )


def too_large_to_train(config: ConfigDict) -> str:
    """What the step is made of, and what makes it smaller."""
    train = config.train
    models = {path: section.model for path, section in peer_sections(config).items()}
    fields = [f"config.train.batch_size={train.batch_size}", f"config.train.accumulate_steps={train.accumulate_steps}"]
    for name, model in models.items():
        path = peer_path(config, name)
        fields += [f"{path}.model.dtype={model.dtype}", f"{path}.model.remat={model.remat}"]
    return (
        f"Now: {', '.join(fields)},"
        f" config.data.crop_px={config.data.crop_px}. Smaller: more accumulate_steps (the same batch in slices), remat=True,"
        " dtype=bfloat16 (on accelerators), a smaller batch or crop, or more devices."
    )
