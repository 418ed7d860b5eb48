"""From the command line to a checked config, and from an exception to a sentence and an exit status.

In: `sys.argv`. Out: a validated `config` in absl's flags. Exit status of every command: 0 done, 1 a crash (please
report it), 2 input that cannot be used, 3 the loss became NaN or infinite, 4 memory or disk do not suffice, 5 another
host is gone, 130 and 143 stopped by SIGINT (Ctrl-C) or SIGTERM, while training with everything saved.
"""

import contextlib
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxseg.config import all_fields, default, find_config_file, load_config, unknown_field
from jaxseg.errors import HostLostError, InputError, NonFiniteError, ResourceError, StoppedError

EXIT_INPUT = 2
EXIT_NONFINITE = 3
EXIT_RESOURCE = 4
EXIT_HOST_LOST = 5
EXIT_INTERRUPTED = 130  # as shells report SIGINT


def run(
    main: Callable[..., int | None], *, usage: str, define: Callable[[], None] = lambda: None, words: str = ""
) -> None:
    """Parses flags and calls `main`, whose number is the status; expected errors become a sentence on standard error.

    words: what the arguments that are no flags are, such as "IMAGE"; they are passed to `main`. "": there are none.
    """

    def guarded(arguments: Sequence[str]) -> int:
        try:
            return (main(arguments[1:]) if words else main()) or 0
        except InputError as error:
            return say(f"error: {error}", EXIT_INPUT)
        except NonFiniteError as error:
            return say(f"stopped: {error}", EXIT_NONFINITE)
        except ResourceError as error:
            leave_at_once(say(f"stopped: {error}", EXIT_RESOURCE))  # libraries' endings would write on a full disk
        except HostLostError as error:
            leave_at_once(say(f"stopped: {error}", EXIT_HOST_LOST))  # JAX's would wait for the host that is gone
        except StoppedError as stopped:
            return say(f"stopped: {stopped}", stopped.status)
        except KeyboardInterrupt:
            return say(
                "interrupted; what is written is whole, and the same command goes on or begins anew", EXIT_INTERRUPTED
            )

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            define()
            if asks_for_help():
                print(f"{usage.strip()}\n\n{flag_lines()}")
                sys.exit(0)
            return parse_flags(list(argv), words=words)
        except InputError as error:
            sys.exit(say(f"error: {error}\n(--help tells more)", EXIT_INPUT))

    logging.set_verbosity(logging.ERROR)  # what a person must read is said by sentences of our own
    app.run(guarded, flags_parser=parse)


def asks_for_help() -> bool:
    return any(word in ("-h", "-help", "--help") for word in sys.argv[1:])


def flag_lines() -> str:
    """A line for every flag that this project declares."""
    ours = {
        name: of for name, of in flags.FLAGS.flags_by_module_dict().items() if "jaxseg" in name or name == sys.argv[0]
    }
    found = {flag.name: flag for of_module in ours.values() for flag in of_module}
    lines = []
    for name, flag in sorted(found.items()):
        default = "" if flag.default in (None, "", False) else f" Default: {flag.default}."
        lines.append(f"--{name}: {flag.help}" + ("" if name == "config" else default))
    return "\n".join(
        ["Flags:", *lines, "--config.FIELD=VALUE: any field of jaxseg/config.py, where the command has a config."]
    )


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
    if workdir is not None:
        config_flags.DEFINE_config_dict("config", load_config(Path(workdir)))
    elif any(word.startswith("-config=") for word in words):
        define_config_file()
    elif not asks_for_help():
        raise InputError("--workdir=RUN is needed (or --config=FILE --config.model.init_from=WEIGHTS).")


def parse_flags(argv: list[str], *, words: str = "") -> list[str]:
    """absl's parsing, with sentences for what it and ml_collections raise. Raises InputError."""
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None  # of a run: evaluate has it by now
    for position, argument in enumerate(argv):
        if match := re.match(r"(--?config)=(.*)", argument):
            argv[position] = f"{match[1]}={find_config_file(match[2])}"
            config = try_config_file(argv[position].split("=", 1)[1])
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


def try_config_file(path: str) -> ConfigDict:
    """Runs an experiment file ahead of absl, which would bury its errors. Raises InputError."""
    name, colon, variant = path.partition(":")
    try:
        config = runpy.run_path(name)["get_config"](*([variant] if colon else []))
    except InputError:
        raise
    except Exception as error:  # whatever a user's file raises
        raise InputError(f"{name}: cannot be used as an experiment file ({type(error).__name__}: {error}).") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{name}: get_config returned a {type(config).__name__}; expected an ml_collections ConfigDict."
        )
    if missing := [f"config.{path}" for path in all_fields(default()) if path not in all_fields(config)]:
        raise InputError(
            f"{name}: get_config's result has no field {', '.join(missing[:3])}{' …' if missing[3:] else ''}; let it start"
            " from jaxseg.config.default()."
        )
    return config
