"""Writing files whole or not at all, removing only what jaxseg made, reading back, locks, and reading many at once.

In: paths and contents. Out: files that no reader finds half-written, or `InputError`s that name the file. Whatever is
removed is removed here, and a folder only where its mark tells that jaxseg made it.
"""

import collections
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from jaxseg.errors import InputError
from jaxseg.schemas import LOG_LINE, Schema

MARK = ".made_by_jaxseg"  # in every folder that may be removed or written into again
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems such as Lustre's or NFS
REMOVE_ATTEMPTS, REMOVE_WAIT_S = 20, 0.1  # two seconds in all
THREADS = 8  # decoding and resizing release the interpreter lock
NAME_BYTES = 200  # of the 255 that Linux's file systems let a name have (limits.h, NAME_MAX): room for what is added


def user_path(text: str | Path, *, what: str = "") -> Path:
    """A path as a user writes it, with ~ and ~NAME for home folders.

    Args:
      text: as given.
      what: which flag or field gave it, such as "--output=".

    Raises:
      InputError: where nobody of that name has a home, or this user has none.

    >>> user_path("runs/demo")
    PosixPath('runs/demo')
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # pathlib's, also for a user id without an entry in passwd and without HOME
        raise InputError(f"{what}{text}: no such home folder is known ({error}); write the path in full.") from error


def is_other_kind(path: Path) -> bool:
    """Whether it is there and neither a file nor a folder: a FIFO would be waited for without end, a device never ends."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path to write to, beside `path`, which gets its name when the block ends.

    Where the block raises, the part is removed, and a file that had the name before stays. Raises IsADirectoryError
    where a folder has the name.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder is where this file is to be written; move it away", str(path))
    name = os.fsencode(path.name)
    shown = path.name if len(name) <= NAME_BYTES else hashlib.sha256(name).hexdigest()
    part = path.with_name(f".{shown}.{os.getpid()}.part")  # a name that nobody else has
    try:
        yield part
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def is_own_folder(folder: Path) -> bool:
    """Whether jaxseg made it. A link is not: what it leads to is somebody else's."""
    return not folder.is_symlink() and (folder / MARK).is_file()


def check_folder_is_own(folder: Path, *, why: str, is_own: Callable[[Path], bool] = is_own_folder) -> None:
    """Refuses to write into, or to replace, what jaxseg did not make.

    Args:
      folder: may be absent.
      why: what it is wanted for, with the flag that names it.
      is_own: how it is recognized.

    Raises:
      InputError: where something is there that jaxseg did not make.
    """
    if (folder.exists() or folder.is_symlink()) and not is_own(folder):
        kind = "a link" if folder.is_symlink() else "a folder" if folder.is_dir() else "a file"
        raise InputError(f"{folder}: {kind} that jaxseg did not make is there, {why}; move it away, or name another.")


def make_own_folder(folder: Path) -> None:
    """Makes `folder` with a mark in it; one of jaxseg's that is there stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def remove_own_folder(folder: Path, *, why: str, is_own: Callable[[Path], bool] = is_own_folder) -> None:
    """Removes a folder of jaxseg's and all in it; arguments and errors as `check_folder_is_own`."""
    check_folder_is_own(folder, why=why, is_own=is_own)
    for attempt in range(REMOVE_ATTEMPTS):
        try:
            if folder.exists():
                shutil.rmtree(folder)
            return
        except OSError as error:  # another thread, of orbax for instance, has just written there
            if error.errno != errno.ENOTEMPTY or attempt == REMOVE_ATTEMPTS - 1:
                raise
            time.sleep(REMOVE_WAIT_S)


def remove_own_file(path: Path) -> None:
    """Removes a file that jaxseg wrote, which the caller has checked."""
    path.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Writes `content`; what is not finite, which JSON does not have, as null."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def finite(content: Any) -> Any:
    """`content`, with None for NaN and infinity.

    >>> finite({"mean_iou": float("nan"), "steps": [1, float("inf")]})
    {'mean_iou': None, 'steps': [1, None]}
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises InputError where it cannot be read, or is none: a pipe would be waited for."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def read_json(path: Path, schema: Schema | None = None) -> dict:
    """The object in a JSON file.

    Args:
      path: of the file.
      schema: what it must hold; None: anything, and {} for what is no object.

    Returns:
      The object, with what the schema does not name.

    Raises:
      InputError: where it cannot be read, or does not fit.
    """
    content = read_bytes(path)
    try:
        content = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); make it again, or move it away.") from error
    if schema is not None:
        schema.check(content, path)
    return content if isinstance(content, dict) else {}


def read_json_lines(path: Path) -> list[dict]:
    """The lines of a run's log, as `schemas.LOG_LINE` has them; [] where there is no file.

    An end without a newline, which a kill cut short, is left out. Raises InputError naming the line that no run wrote.
    """
    text = read_bytes(path).decode("utf-8", "replace") if os.path.lexists(path) else ""
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            content = json.loads(line)
            problem = LOG_LINE.problem(content)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem is not None:
            raise InputError(
                f"{path}, line {number}: not a line of a run's log ({line[:60]!r}: {problem}). Put the file back as it was, or"
                " move it away: a run that goes on begins its log anew."
            )
        lines.append(content)
    return lines


def write_json_lines(path: Path, lines: Iterable[dict]) -> None:
    """An object per line."""
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(finite(line)) + "\n" for line in lines), encoding="utf-8")


def make_parent(output: Path) -> None:
    """The folder that a result goes into, made before the result is computed. Raises InputError."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={output}: its folder cannot be made ({error.strerror}).") from error


@contextlib.contextmanager
def file_lock(path: Path, *, if_held: Callable[[], None]) -> Iterator[TextIO]:
    """Holds an exclusive lock on `path`; a killed process lets go of its own.

    Args:
      path: the file, made where it is not there.
      if_held: called where another process holds the lock, to say so, or to raise; then the lock is waited for.

    Yields:
      The open file; a child that inherits it holds the lock, too. Where the file system has no locks, that is told, and
      nothing is held.
    """
    # Neither emptied nor followed where it is a link: what it leads to is somebody else's.
    number = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    with open(number, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if_held()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"{path}: this file system has no locks ({error.strerror}); going on without. Start no second process there.",
                file=sys.stderr,
            )
        yield file


def parallel_map[T, R](
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    ahead: int = 4 * THREADS,
    cost: Callable[[T], float] = lambda item: 0,
    budget: float = math.inf,
) -> Iterator[R]:
    """`map(function, items)` by threads, in order, with at most `ahead` results waiting.

    Args:
      function: of one item.
      items: to go through.
      ahead: how many are begun or waiting at once.
      cost: of an item, for instance the pixels that its result holds.
      budget: what the items begun or waiting may cost together; one that alone costs more is taken by itself.

    Yields:
      The results.

    >>> list(parallel_map(abs, [-2, 1]))
    [2, 1]
    """
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque = collections.deque()  # (future, its cost)
        try:
            for item in items:
                price = cost(item)
                while waiting and (len(waiting) >= ahead or sum(paid for _, paid in waiting) + price > budget):
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(function, item), price))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


def visible_files(folder: Path) -> Iterator[Path]:
    """The files in `folder` and all below it, links to files and folders followed, in order of their paths.

    What begins with a dot (.ipynb_checkpoints/, ._x.png) is left out, and so is a folder that leads back to one above.
    Raises InputError naming a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error

    for name, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(name)
        above = {os.path.realpath(folder) for folder in (folder, here, *here.parents)}  # never fails, unlike `resolve`
        subfolders[:] = sorted(
            sub for sub in subfolders if not sub.startswith(".") and os.path.realpath(here / sub) not in above
        )
        yield from (here / name for name in sorted(names) if not name.startswith(".") and (here / name).is_file())
