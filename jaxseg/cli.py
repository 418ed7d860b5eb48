"""From the command line to a checked config, and from an exception to a sentence and an exit status.

In: the words behind a command's name. Out: a validated `config` in absl's flags. Exit status of every command: 0 done,
1 a crash (please report it), 2 input that cannot be used, 3 the loss became NaN or infinite, 4 memory or disk do not
suffice, 5 another host is gone, 128 + n stopped by signal n (130: Ctrl-C, 143: SIGTERM), while training with everything
saved.
"""

import contextlib
import faulthandler
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_flags

from jaxseg.config import (
    all_fields,
    default,
    fields_help,
    find_config_file,
    load_config,
    run_config_file,
    unknown_field,
)
from jaxseg.console import replace_unknown_characters
from jaxseg.errors import (
    DISK_FULL,
    INTERRUPTED_STATUS,
    HostLostError,
    InputError,
    NonFiniteError,
    ResourceError,
    StoppedError,
    system_sentence,
)
from jaxseg.files import user_path

INFERENCE_FLAGS = ("resize", "window_px", "overlap", "scales", "flip")
WIDTH = 80  # columns of what --help prints

# exception -> the word before its sentence, and whether the process then leaves at once
ENDINGS = {
    InputError: ("error", False),
    NonFiniteError: ("stopped", False),
    ResourceError: ("stopped", True),  # libraries' endings would write on a full disk
    HostLostError: ("stopped", True),  # JAX's would wait for the host that is gone
    StoppedError: ("stopped", False),
}


def run(
    command: Callable[..., int | None],
    argv: Sequence[str] | None = None,
    *,
    usage: str,
    define: Callable[[], None] = lambda: None,
    words: str = "",
) -> int:
    """Parses flags and calls `command`; expected errors become a sentence on standard error.

    Flags are declared and values set for this one call, in absl's `flags.FLAGS`, so that commands can be called one
    after the other in one process.

    Args:
      command: what the flags are for; what it returns is the status, None being 0.
      argv: what stands behind the command's name. None: this process was started for the command, as it says in
        `sys.argv`, and ends with it: without libraries' own endings where these cannot work.
      usage: what --help prints above the flags.
      define: declares the flags.
      words: what the arguments that are no flags are, such as "IMAGE"; they are passed to `command`. "": there are none.

    Returns:
      The exit status.
    """
    if argv is None:
        faulthandler.enable(sys.__stderr__)
        logging.use_absl_handler()
        logging.set_verbosity(logging.ERROR)  # what a person must read is said by sentences of our own
        replace_unknown_characters()
    typed = sys.argv if argv is None else [f"python -m {command.__module__}", *argv]
    with command_line(typed):
        try:
            with declared_flags(define) as own:
                if topic := help_topic(typed):
                    print(help_text(topic, usage, own))
                    return 0
                rest = parse_flags(list(typed), words=words)
                return guarded(command, *([rest[1:]] if words else []), ends_process=argv is None)
        except InputError as error:
            return say(f"error: {error}\n(--help tells more)", error.status)
        except OSError as error:
            return say(f"error: {system_sentence(error)}\n(--help tells more)", InputError.status)


def guarded(command: Callable[..., int | None], *arguments: list[str], ends_process: bool) -> int:
    """Calls it; the status of what it returned or raised."""
    try:
        return command(*arguments) or 0
    except tuple(ENDINGS) as error:  # type: ignore[misc]
        word, at_once = next(ending for kind, ending in ENDINGS.items() if isinstance(error, kind))
        status = say(f"{word}: {error}", error.status)
        if at_once and ends_process:
            leave_at_once(status)
        return status
    except OSError as error:  # the last handler: whatever no closer one has put into words of its own
        is_full = error.errno in DISK_FULL
        status = say(
            f"{'stopped' if is_full else 'error'}: {system_sentence(error)}",
            ResourceError.status if is_full else InputError.status,
        )
        if is_full and ends_process:
            leave_at_once(status)
        return status
    except UnicodeEncodeError as error:
        return say(
            f"error: {error.object[:200]!a}: a name or text that is not UTF-8 has no place there; rename the file.",
            InputError.status,
        )
    except KeyboardInterrupt:
        return say(
            "interrupted; what is written is whole, and the same command goes on or begins anew", INTERRUPTED_STATUS
        )


@contextlib.contextmanager
def command_line(typed: list[str]) -> Iterator[None]:
    """`typed` as `sys.argv`, where ml_collections and the record of a result (`jaxseg.provenance`) look for it."""
    before = sys.argv
    sys.argv = typed
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def declared_flags(define: Callable[[], None]) -> Iterator[list[flags.Flag]]:
    """The flags that `define` declares, in absl's `flags.FLAGS` until the end of the block."""
    others = set(flags.FLAGS)
    own = set()
    try:
        try:
            define()
        finally:
            own = set(flags.FLAGS) - others
        yield [flags.FLAGS[name] for name in sorted(own)]
    finally:
        overrides = {name for name in flags.FLAGS if name.startswith("config.")}  # by ml_collections, while parsing
        for name in own | overrides:
            delattr(flags.FLAGS, name)


def help_topic(typed: Sequence[str]) -> str | None:
    """What help is asked for: "flags", "config", or None."""
    topics = {"h": "flags", "help": "flags", "help=config": "config"}
    asked = [topics.get(word.lstrip("-")) for word in typed[1:] if word.startswith("-")]
    return next(filter(None, asked), None)


def help_text(topic: str, usage: str, own: Sequence[flags.Flag]) -> str:
    """What a command is for and its flags, or the fields of its config."""
    has_config = any(flag.name == "config" for flag in own)
    if topic == "config" and has_config:
        return "\n".join(map(wrap, ["--config.FIELD=VALUE sets a field of the config.", "", *fields_help()]))
    lines = [*map(wrap_paragraph, usage.strip().split("\n\n")), "Flags:"]
    lines = ["\n\n".join(lines)]
    for flag in own:
        default = f" Default: {flag.default}." if flag.default else ""
        lines.append(wrap(f"--{flag.name}: {flag.help}{default}"))
    if has_config:
        lines.append(wrap("--config.FIELD=VALUE: any field of the config; --help=config lists them all."))
    return "\n".join(lines)


def wrap_paragraph(text: str) -> str:
    """Flowing text filled anew; indented lines, which are commands, one by one."""
    if text.startswith(" "):
        return "\n".join(map(wrap, text.splitlines()))
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def wrap(line: str) -> str:
    """`line` in `WIDTH` columns; what is carried over is indented by four more."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def leave_at_once(status: int) -> NoReturn:
    """Without what libraries do at the end of a process."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def define_config_file(default_file: str | None = None) -> None:
    """The flag --config=FILE[:VARIANT], with --config.field=value for every field."""
    config_flags.DEFINE_config_file(
        "config", default_file, "Experiment file, with a variant after a colon.", lock_config=True
    )


def define_run() -> None:
    """The flags --workdir=RUN, --checkpoint=last|best|STEP, and --config.field=value over that run's own config. Or, for
    weights that no run here made, --config=FILE, whose config.model.init_from names them. Raises InputError."""
    flags.DEFINE_string("workdir", None, "The run.")
    flags.DEFINE_string("checkpoint", "last", "last, best or a step.")
    words = [word.removeprefix("-") for word in sys.argv[1:]]
    workdir = next((word.split("=", 1)[1] for word in words if word.startswith("-workdir=")), None)
    if "-workdir" in words[:-1]:
        workdir = words[words.index("-workdir") + 1]
    if help_topic(sys.argv) or (workdir is None and any(word.startswith("-config=") for word in words)):
        define_config_file()
    elif workdir is not None:
        config_flags.DEFINE_config_dict("config", load_config(user_path(workdir, what="--workdir=")))
    else:
        raise InputError("--workdir=RUN is needed (or --config=FILE --config.model.init_from=WEIGHTS).")


def define_inference_flags() -> None:
    """The flags that say how a network looks at an image; their names are in `INFERENCE_FLAGS`."""
    flags.DEFINE_string("resize", None, "run: to the size of the run's images; none: at their own pixels.")
    flags.DEFINE_integer("window_px", 0, "Side of sliding windows; 0: the image in one piece.")
    flags.DEFINE_float("overlap", 0.5, "Share of a window that the next one covers too.")
    flags.DEFINE_string("scales", "1", "Factors on the size, with commas; their probabilities are averaged.")
    flags.DEFINE_bool("flip", False, "Also the mirror image.")
    flags.DEFINE_float("max_megapixels", None, "Largest picture that is read; default: Pillow's limit, about 179.")


def inference_flags(*, resize: str) -> dict:
    """What these flags say, by name; `resize` where they do not say that. Raises InputError."""
    given = {name: flags.FLAGS[name].value for name in INFERENCE_FLAGS}
    try:
        scales = tuple(float(scale) for scale in given["scales"].split(","))
    except ValueError as error:
        raise InputError(f"--scales={given['scales']}: expected numbers with commas, such as 0.75,1,1.25.") from error
    if flags.FLAGS["overlap"].present and not given["window_px"]:
        raise InputError(f"--overlap={given['overlap']} has no effect without --window_px; add it, or drop this.")
    return given | {"resize": given["resize"] or resize, "scales": scales}


def parse_flags(argv: list[str], *, words: str = "") -> list[str]:
    """absl's parsing, with sentences for what it and ml_collections raise. Raises InputError."""
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None  # of a run: evaluate has it by now
    for position, argument in enumerate(argv):
        if match := re.match(r"(--?config)=(.*)", argument):
            argv[position] = f"{match[1]}={find_config_file(match[2])}"
            config = run_config_file(argv[position].split("=", 1)[1])
    config = default() if config is None else config
    for argument in argv:
        if (match := re.match(r"--?config\.([^=]+)", argument)) and match[1] not in all_fields(config):
            raise unknown_field(match[1], config)
    try:
        flags.FLAGS.set_gnu_getopt(bool(words))  # flags may also stand behind words
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(str(error)) from error
    except (AttributeError, KeyError, TypeError, SyntaxError, ImportError) as error:
        raise InputError(
            f"the experiment file or an override cannot be used: {type(error).__name__}: {error}"
        ) from error
    if rest[1:] and not words:
        raise InputError(f"{rest[1]!r} is no flag; write --name=value.")
    return rest
