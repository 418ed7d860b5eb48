"""Tables and figures of everything below a results folder.

    python -m jaxseg.report [--results=results] [--output=RESULTS/report]
    python -m jaxseg.report --html [--results=results] [--output=RESULTS/report/report.html]
    python -m jaxseg.report --html [NAME=]RUN [[NAME=]RUN …] [--gallery=60] [--output=FILE.html]

In: `plan.json` and the runs' JSON that `python -m jaxseg.study` wrote, and any other run's results.json. Out, in the
output folder: report.md; table1 (the paper's Table 1) and differences as CSV and LaTeX, runs and classes as CSV; figures
as PNG and SVG. With --html: one page that needs no other file and no network, of the same tables and figures; or of the
folders of runs, side by side, with curves, confusion matrices and the images that `python -m jaxseg.evaluate` keeps beside
its scores (default output RUN/report.html, of several runs report.html here). The same files give the same bytes. Imports
no JAX: results can be looked at anywhere.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxseg import cli
from jaxseg.errors import InputError
from jaxseg.files import atomic_write
from jaxseg.reporting.comparison import Study, load_single_runs, load_studies
from jaxseg.reporting.figures import save_study_figures
from jaxseg.reporting.html.gallery import load_gallery
from jaxseg.reporting.html.page import results_page, runs_page
from jaxseg.reporting.html.runs import load_runs
from jaxseg.reporting.tables import write_tables


def load_results(results: Path) -> tuple[list[Study], dict[str, dict]]:
    """Studies, and the runs that belong to none. Raises InputError where there is neither."""
    if not results.is_dir():
        raise InputError(f"--results={results}: no such folder; expected one with the JSON files of runs.")
    studies = load_studies(results)
    single_runs = load_single_runs(results)
    if not studies and not single_runs:
        raise InputError(f"--results={results}: holds no study (plan.json) and no run (results.json).")
    return studies, single_runs


def write_report(results: Path, output: Path) -> list[Path]:
    """Writes tables and figures; returns the paths, report.md first. Raises InputError naming a file that does not fit."""
    studies, single_runs = load_results(results)
    try:
        output.mkdir(parents=True, exist_ok=True)
        return write_tables(studies, single_runs, output) + save_study_figures(studies, output)
    except OSError as error:
        raise InputError(f"--output={output}: cannot be written ({error.strerror}); name another folder.") from error


def write_page(text: str, output: Path) -> None:
    """Raises InputError where the file cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files that are not UTF-8
    except OSError as error:
        raise InputError(f"--output={output}: cannot be written ({error.strerror}); name another file.") from error


def define_flags() -> None:
    flags.DEFINE_string("results", "results", "Folder with the JSON files of runs.")
    flags.DEFINE_string("output", None, "Folder to write to; default: RESULTS/report. With --html, the file.")
    flags.DEFINE_bool("html", False, "Write one HTML page: of the results folder, or of the runs named.")
    flags.DEFINE_integer("gallery", 60, "Images on the page of runs, at most.", lower_bound=1)


def execute(words: Sequence[str]) -> None:
    options = flags.FLAGS
    results = Path(options.results)
    if not options.html:
        if words:
            raise InputError(f"{words[0]!r} is no flag; write --name=value, or --html for a page of runs.")
        paths = write_report(results, Path(options.output or results / "report"))
        print(f"written: {paths[0]} and {len(paths) - 1} more files beside it")
        return
    if words:
        runs = load_runs(words)
        text = runs_page(runs, load_gallery(runs, max_examples=options.gallery))
        default = runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html")
    else:
        text = results_page(*load_results(results))
        default = results / "report" / "report.html"
    path = Path(options.output or default)
    write_page(text, path)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags, words="[NAME=]RUN")


if __name__ == "__main__":
    sys.exit(main())
