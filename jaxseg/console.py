"""Lines and bars that a person reads while something runs.

In: sentences and counts. Out: a bar where there is a terminal, else a line now and then.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

STATUS_EVERY_S = 15  # between lines where there is no terminal to draw a bar on


def replace_unknown_characters() -> None:
    """What standard output cannot show is replaced there, where Python would raise UnicodeEncodeError: × in ASCII, a file
    name that is not UTF-8. Standard error is so from the start."""
    with contextlib.suppress(AttributeError, OSError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


class PlainConsole(Console):
    """A console that prints text as it is: no markup, no highlighting, long lines left to the terminal."""

    def __init__(self, **options):
        super().__init__(markup=False, highlight=False, **options)

    def say(self, text: str) -> None:
        """Prints one sentence."""
        self.print(text, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, *, unit_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields the function that advances it by a number of items, or of bytes."""
    console = PlainConsole(stderr=True)
    count = TextColumn("{task.percentage:3.0f} %") if unit_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    if not console.is_terminal:
        console.say(f"{title} …")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        said_at = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal said_at, done
            progress.advance(task, count)
            done += count
            if not console.is_terminal and not unit_bytes and time.monotonic() - said_at > STATUS_EVERY_S:
                said_at = time.monotonic()
                console.say(f"{done:,} of {total:,}")

        yield advance
