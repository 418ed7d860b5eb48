"""All commands under one name: `jaxseg COMMAND …`, or `python -m jaxseg COMMAND …`.

In: the command's name and its own words. Out: the exit status of the module that `COMMANDS` names, which
`python -m MODULE …` runs too. Only that module is imported: `jaxseg --help` takes no JAX.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxseg.console import replace_unknown_characters
from jaxseg.errors import InputError, did_you_mean

COMMANDS = {
    "train": ("jaxseg.main", "train and score what an experiment file describes"),
    "evaluate": ("jaxseg.evaluate", "score a checkpoint, image by image"),
    "predict": ("jaxseg.predict", "masks and overlays of pictures of any size"),
    "report": ("jaxseg.report", "tables and figures of results, HTML pages of runs"),
    "export": ("jaxseg.export", "a network as a file for other programs"),
    "study": ("jaxseg.study", "the runs of a plan: models, data sets, protocols and seeds"),
    "check": ("jaxseg.data.check", "look for what is wrong in a raw data set"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the words behind a command's name to its module.

    Args:
      argv: the command's name and its words; None: those of this process.

    Returns:
      The exit status.
    """
    if argv is None:
        replace_unknown_characters()
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "-help", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}.{did_you_mean(name, COMMANDS)}\n{usage()}", file=sys.stderr)
        return InputError.status
    module = importlib.import_module(COMMANDS[name][0])
    if argv is not None:
        return module.main(words)
    program = "python -m jaxseg" if Path(sys.argv[0]).name == "__main__.py" else "jaxseg"
    sys.argv = [f"{program} {name}", *words]  # as it is written beside results
    return module.main()


def usage() -> str:
    """What there is, a line each."""
    lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["jaxseg COMMAND [--flag=value …]", "", *lines, "", "jaxseg COMMAND --help tells more."])


if __name__ == "__main__":
    sys.exit(main())
