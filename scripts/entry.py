"""Both ends of every script: options and exit status, tables and where the numbers come from.

In: a script's docstring and its main(options). Out: its exit status, 2 with a sentence where something cannot be used;
tables for people, JSON files that say how to make them again.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import jax
from rich.table import Table

from jaxseg.errors import InputError
from jaxseg.files import make_parent, write_json
from jaxseg.provenance import command, commit


def options_of(doc: str, **counts: int) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, with an integer option for each of `counts`, its default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in counts.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    return parser


def result_options_of(doc: str, **counts: int) -> argparse.ArgumentParser:
    """`options_of`, with --output for the JSON."""
    parser = options_of(doc, **counts)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None = None,
) -> NoReturn:
    """Ends the process with the status that `main` returns, or with 2 and a sentence where it raises InputError.

    words: of the command line; None: all of them.
    """
    options = parser.parse_args(words)
    try:
        if getattr(options, "output", None):
            make_parent(options.output)
        sys.exit(main(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(InputError.status)


def make_table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    """An empty table whose first `left` columns are words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", no_wrap=position < left)
    return table


def device_name() -> str:
    return f"{jax.devices()[0].device_kind} ({os.cpu_count()} CPU cores)"


def origin(packages: Sequence[str] = ()) -> dict:
    """Commit, device and versions of what computes here: of Python, jax, jaxlib and, where installed, `packages`."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"commit": commit(), "device": device_name(), "versions": versions}


def write_result(output: Path | None, content: dict, *, packages: Sequence[str] = ()) -> None:
    """Writes `content` with command, commit, device and versions; nothing without an `output`.

    Args:
      output: the JSON file.
      content: what was measured, and with which settings.
      packages: whose versions are written beside those of Python, jax and jaxlib, where they are installed.
    """
    if output is None:
        return
    write_json(output, {"command": command(), **origin(packages), **content})
