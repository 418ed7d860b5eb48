"""Whether what is asked for fits into the machine: memory, shared memory, room on a disk; refused before it is begun.

In: bytes, and what they are for. Out: nothing, or a `ResourceError` with what would be taken, what there is, and which
fields make it less. Counted is only what cannot be done without, so that nothing is refused that fits.
"""

import shutil
from pathlib import Path

from jaxseg.errors import ResourceError

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes share


def check_memory(wanted: int, *, what: str, less: str) -> None:
    """That the machine has as much memory.

    Args:
      wanted: bytes.
      what: it is for.
      less: what to change, with the fields' values.

    Raises:
      ResourceError: it has less.

    >>> check_memory(10**6, what="a batch", less="a smaller one")
    """
    there = available_memory()
    if there is not None and wanted > there:
        raise ResourceError(f"{what} would take {size(wanted)} of memory, {size(there)} are available. {less}")


def check_shared_memory(wanted: int, *, what: str, less: str) -> None:
    """The same for `SHARED_MEMORY`, which is 64 MiB in a Docker container that nobody has given more."""
    if not SHARED_MEMORY.is_dir():
        return
    there = shutil.disk_usage(SHARED_MEMORY).free
    if wanted > there:
        raise ResourceError(f"{what} would take {size(wanted)} of {SHARED_MEMORY}, {size(there)} are free. {less}")


def check_disk(folder: Path, wanted: int, *, what: str, less: str) -> None:
    """The same for the disk that `folder`, which is there, is on."""
    there = shutil.disk_usage(folder).free
    if wanted > there:
        raise ResourceError(f"{what} would take {size(wanted)} in {folder}, {size(there)} are free. {less}")


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes: what Linux says can still be used, or a container's limit where that is less; None where neither is told."""
    found = []
    for name, wanted in (
        ("proc/meminfo", "MemAvailable:"),
        ("sys/fs/cgroup/memory.max", ""),  # version 2 of control groups; "max" where there is no limit
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", ""),  # version 1
    ):
        try:
            lines = (root / name).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        words = [line.removeprefix(wanted).split() for line in lines if line.startswith(wanted)]
        if words and words[0] and words[0][0].isdecimal():
            found.append(int(words[0][0]) * (1024 if words[0][1:] == ["kB"] else 1))
    return min(found, default=None)


def size(count: int) -> str:
    """Bytes, as a person reads them.

    >>> size(64 << 20)
    '64.0 MiB'
    """
    power = min(max(count, 1).bit_length() - 1, 49) // 10  # of 1024
    return f"{count / 1024**power:,.1f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
