"""Several hosts: joining JAX's distributed runtime, and agreeing before anything that the others would wait for.

In: addresses from flags, or from what SLURM, Open MPI, Kubernetes and TPU pods set. Out: one run in which every host has
the same answer. On a single host everything here returns at once.
"""

import faulthandler
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.errors import InputError

HEARTBEAT_S = 30  # a host that is silent for so long is gone, and the others end
MESSAGE_BYTES = 4096  # of an error that is told to the other hosts


def join(*, coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several. What is not given is found in the environment. Raises InputError.

    coordinator: HOST:PORT of process 0, the same on all. To be called before JAX looks for devices.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, RuntimeError, OSError) as error:
        flags = " ".join(f"--{name}={value}" for name, value in given.items() if value is not None) or "no more flags"
        raise InputError(
            f"--distributed, with {flags}: the hosts did not find each other ({error}). Where neither SLURM, Open MPI,"
            " Kubernetes nor a TPU pod tells a process its place, give --coordinator=HOST:PORT --processes=N --process=I."
        ) from error
    faulthandler.disable()  # when another host dies JAX says so and aborts: pages of stacks would bury what it says


def is_primary_host() -> bool:
    """Whether this host is the one that writes."""
    return jax.process_index() == 0


def raise_on_all_hosts[T](function: Callable[[], T]) -> T:
    """What `function()` returns here. Where it raises InputError on one host, all raise, so that none waits for it."""
    if jax.process_count() == 1:
        return function()
    result, failed = None, None
    try:
        result = function()
    except InputError as error:
        failed = error
    said = gather(str(failed or ""))
    if failed is not None:
        raise failed
    for host, message in enumerate(said):
        if message:
            raise InputError(f"on host {host}: {message}")
    return result


def run_on_primary[T](function: Callable[[], T]) -> T | None:
    """`function()` on the first host only, None on the others; its InputError is raised on all."""
    return raise_on_all_hosts(lambda: function() if is_primary_host() else None)


def gather(text: str) -> list[str]:
    """The text of every host, cut at MESSAGE_BYTES."""
    padded = np.zeros(MESSAGE_BYTES, np.uint8)
    content = np.frombuffer(text.encode()[:MESSAGE_BYTES], np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, MESSAGE_BYTES)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


def broadcast_from_primary(number: int) -> int:
    """The first host's number."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
