"""The exceptions whose message is a sentence for the user, and the exit status of each.

In: nothing. Out: what `jaxseg.cli` turns into one line on standard error. Everything else that is raised is a crash
(status 1; please report it).
"""

import difflib
import errno
import os
from collections.abc import Iterable

INTERRUPTED_STATUS = 130  # of KeyboardInterrupt, as shells report SIGINT
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of OSErrors that say so


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was got, where, what was expected, what to do."""

    status = 2


class NonFiniteError(RuntimeError):
    """A loss term or gradient became NaN or infinite; training stopped before anything of it was saved."""

    status = 3


class ResourceError(RuntimeError):
    """Memory or disk do not suffice; what was saved before is whole."""

    status = 4


class HostLostError(RuntimeError):
    """One of several hosts is gone; what was saved before is whole."""

    status = 5


class StoppedError(RuntimeError):
    """A signal asked to stop; what was trained so far is saved.

    Args:
      message: the sentence.
      signal_number: which signal; the status is 128 more, as shells report it.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.status = 128 + signal_number


def did_you_mean(value: object, known: Iterable) -> str:
    """The end of a message: which of `known` is nearest; "" where none is near.

    >>> did_you_mean("trian", ["train", "check"])
    " Did you mean 'train'?"
    """
    near = difflib.get_close_matches(str(value), [str(choice) for choice in known], 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def system_sentence(error: OSError) -> str:
    """What the system says of a file, of two (where one was to get the other's name) of the other.

    >>> system_sentence(PermissionError(13, "Permission denied", "masks/a.png"))
    'masks/a.png: Permission denied.'
    """
    name = error.filename2 or error.filename
    said = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(name)[:300] if isinstance(name, str | bytes | os.PathLike) else 'a file'}: {said}."
