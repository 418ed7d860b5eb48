"""Tables and figures of everything below a results folder.

    python -m jaxseg.report [--results=results] [--output=RESULTS/report]
    python -m jaxseg.report --html [--results=results] [--output=RESULTS/report/report.html]
    python -m jaxseg.report --html [NAME=]RUN [[NAME=]RUN …] [--gallery=60] [--output=FILE.html]

In: `plan.json` and the runs' JSON that `python -m scripts.study` wrote, and any other run's results.json. Out, in the
output folder: report.md; table1 (the paper's Table 1) and differences as CSV and LaTeX, runs and classes as CSV; figures
as PNG and SVG. With --html: one page that needs no other file and no network, of the same tables and figures; or of the
folders of runs, side by side, with curves, confusion matrices and the images that `python -m jaxseg.evaluate` keeps beside
its scores (default output RUN/report.html, of several runs report.html here). The same files give the same bytes. Imports
no JAX: results can be looked at anywhere.
"""

import csv
import io
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from jaxseg import cli
from jaxseg.errors import InputError
from jaxseg.reporting.comparison import (
    DATASETS,
    METRICS,
    MODELS,
    NAMES,
    Difference,
    Study,
    Summary,
    class_scores,
    load_single_runs,
    load_studies,
    paired,
    questions,
    score,
    summarize,
)
from jaxseg.reporting.figures import draw, kinds
from jaxseg.reporting.html.document import report_page
from jaxseg.reporting.html.gallery import load_gallery
from jaxseg.reporting.html.page import runs_page
from jaxseg.reporting.html.runs import load_runs

# RECPAD 2024, Table 1: (IoU, Acc) of Models 1, 2, 3.
PAPER = {
    "cityscapes": {"unet": (0.5931, 0.9388), "rmi": (0.5244, 0.9345), "mutual": (0.5619, 0.9342)},
    "voc2012": {"unet": (0.1965, 0.7367), "rmi": (0.0607, 0.6893), "mutual": (0.2203, 0.7539)},
}
DIGITS = 3


def write_report(results: Path, output: Path) -> list[Path]:
    """Writes everything; returns the paths, report.md first. Raises InputError naming a file that does not fit."""
    studies, single = load_results(results)
    texts = {"report.md": markdown(studies, single), "runs.csv": to_csv(runs_rows(studies))}
    texts |= {"classes.csv": to_csv(class_rows(studies)), "table1.csv": to_csv(table1_rows(studies))}
    texts |= {"differences.csv": to_csv(difference_rows(studies))}
    texts |= {"table1.tex": table1_latex(studies), "differences.tex": differences_latex(studies)}
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output / name).write_text(text)
    return [output / name for name in texts] + draw(studies, output)


def load_results(results: Path) -> tuple[list[Study], dict[str, dict]]:
    """Studies, and the runs that belong to none. Raises InputError where there is neither."""
    if not results.is_dir():
        raise InputError(f"--results={results}: no such folder; expected one with the JSON files of runs.")
    studies, single = load_studies(results), load_single_runs(results)
    if not studies and not single:
        raise InputError(f"--results={results}: holds no study (plan.json) and no run (results.json).")
    return studies, single


def results_html(results: Path) -> str:
    """report.md and its figures as one page. Raises InputError as `write_report`."""
    studies, single = load_results(results)
    with tempfile.TemporaryDirectory() as folder:
        drawn = {path.stem: path.read_text() for path in draw(studies, Path(folder)) if path.suffix == ".svg"}
    return report_page(markdown(studies, single), drawn)


def write_page(text: str, output: Path) -> None:
    """Writes beside and renames, so that no reader finds half a page. Raises InputError where that cannot be."""
    part = output.with_name(f"{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.rename(output)
    except OSError as error:
        raise InputError(f"--output={output}: cannot be written ({error.strerror}); name another file.") from error


def table1(study: Study, dataset: str, protocol: str) -> dict[str, dict[str, Summary]]:
    """Model -> metric -> score over seeds: a row of the paper's Table 1."""
    return {
        model: {k: summarize([score(run, k) for run in study.of(dataset, protocol, model).values()]) for k in METRICS}
        for model in MODELS
    }


def best(row: dict[str, dict[str, Summary]], metric: str) -> str | None:
    """The model with the highest mean; None where fewer than two have one."""
    means = {model: row[model][metric].mean for model in MODELS if row[model][metric].count}
    return max(means, key=means.get) if len(means) > 1 else None


def cell(summary: Summary, *, bold: bool = False) -> str:
    """0.401 ± 0.012, empty where nothing was run."""
    if not summary.count:
        return ""
    mean = f"{summary.mean:.{DIGITS}f}"
    return (f"**{mean}**" if bold else mean) + ("" if math.isnan(summary.spread) else f" ± {summary.spread:.{DIGITS}f}")


def table1_lines(study: Study) -> list[list[str]]:
    """Rows of strings, the paper's own above ours, best of a row in **bold**."""
    lines = []
    for dataset, protocol in study.model_settings:
        if dataset in PAPER and DATASETS[dataset] not in {line[0] for line in lines}:
            paper = PAPER[dataset]
            tops = [max(values[i] for values in paper.values()) for i in range(2)]
            numbers = [f"**{v:.4f}**" if v == tops[i] else f"{v:.4f}" for m in MODELS for i, v in enumerate(paper[m])]
            lines.append([DATASETS[dataset], "the paper", *numbers])
        row = table1(study, dataset, protocol)
        marks = {metric: best(row, metric) for metric in METRICS}
        cells = [cell(row[m][k], bold=marks[k] == m) for m in MODELS for k in METRICS]
        lines.append([DATASETS[dataset], f"here, {protocol}", *cells])
    return lines


def markdown(studies: list[Study], single: dict[str, dict]) -> str:
    """report.md."""
    parts = [
        "# Results",
        "Made by `python -m jaxseg.report` from the JSON files beside it; not edited by hand. Scores are of the reported network"
        " (in mutual learning the U-Net) after the last step, on the validation split, void left out: IoU is TP / (TP +"
        " FP + FN), averaged over the classes present; Acc the share of pixels that are right. Means over seeds ± standard"
        " deviation (n - 1); an empty cell was not run.",
    ]
    for study in studies:
        parts += study_parts(study)
    if single:
        header, rows = ["run", "data set", "network", "IoU", "Acc"], []
        for name, run in single.items():
            scores = [f"{score(run, metric):.{DIGITS}f}" for metric in METRICS]
            rows.append([f"`{name}`", DATASETS[run["data"]["name"]], run["reported_peer"], *scores])
        parts += ["## Other runs", md_table(header, rows, left=3)]
    return "\n\n".join(parts) + "\n"


def study_parts(study: Study) -> list[str]:
    """One study: Table 1, differences, classes, figures, failures, provenance."""
    plan, parts = study.plan, [f"## {study.plan['title']}", study.plan["note"]]
    done, planned = sum(run["name"] in study.runs for run in plan["runs"]), len(plan["runs"])
    parts.append(f"Plan `{plan['plan']}`: {done} of {planned} runs done. {provenance(study)}".strip())
    if study.model_settings:
        header = ["data set", "", *(f"{NAMES[m]}: {k}" for m in MODELS for k in ("IoU", "Acc"))]
        parts += ["### Table 1", md_table(header, table1_lines(study), left=2)]
    if done and len({cell[2] for cell in study.cells} - set(MODELS)):
        parts += ["### Arms", md_table(["data set", "protocol", "arm", "runs", "IoU", "Acc"], arm_lines(study), left=3)]
    if lines := difference_lines(study):
        header = ["question", "data set", "of", "against", "pairs", "IoU", "Acc", "IoU is"]
        parts += ["### Paired differences", DIFFERENCES_NOTE, md_table(header, lines, left=4)]
        parts.append(figure_link(study, "differences", "paired differences of mean IoU, with 95 % intervals"))
    if "curves" in kinds(study):
        parts += ["### Curves", figure_link(study, "curves", "training loss and validation IoU over the steps")]
        parts += ["### Classes", *class_tables(study)]
        parts.append(figure_link(study, "confusion", "confusion matrices, in shares of the true class's pixels"))
    if failed := [f"- `{name}`: {run['failed']}" for name, run in sorted(study.runs.items()) if "failed" in run]:
        parts += ["### Not finite", "\n".join(failed)]
    return parts


DIFFERENCES_NOTE = (
    "First minus second, over pairs of runs of the same seed (same data order; same initial weights where the networks are"
    " the same), with 95 % intervals by Student's t. One interval in twenty misses where nothing differs, and three pairs"
    ' give wide ones: "open" says that these runs do not tell, not that there is no difference.'
)


def provenance(study: Study) -> str:
    """Commit, versions, device, data and time of the plan's own runs, each value once."""
    names = [run["name"] for run in study.plan["runs"]]
    runs = [run for name, run in sorted(study.runs.items()) if name in names and "commit" in run]
    if not runs:
        return ""
    commits = (str(run["commit"]) for run in runs)
    commits = {commit[:12] + ("+changes" if commit.endswith("+changes") else "") for commit in commits}
    devices = {"{count} × {kind}".format(**run["device"]) for run in runs}
    versions = {"jax {jax}, flax {flax}, Python {python}".format(**run["versions"]) for run in runs}
    data = {"{name} {fingerprint} ({train} + {val} images)".format(**run["data"]) for run in runs}
    hours, cut = sum(run["wall_time_s"] for run in runs) / 3600, sum(run["resumed"] for run in runs)
    parts = f", of {cut} interrupted runs only what came after the last interruption" if cut else ""
    return (
        f"Commit {listed(commits)}; {listed(versions)}; {listed(devices)}; data: {listed(data)}; {hours:.1f} hours of"
        f" training and scoring in all{parts}."
    )


def listed(values: set[str]) -> str:
    return ", ".join(sorted(values))


def arm_lines(study: Study) -> list[list[str]]:
    lines, arms = [], [*MODELS, *(cell[2] for cell in study.cells)]
    for where in dict.fromkeys((*setting, arm) for setting in study.settings for arm in arms):
        runs = study.of(*where)
        if runs or study.planned(*where):
            scores = [cell(summarize([score(run, metric) for run in runs.values()])) for metric in METRICS]
            lines.append([DATASETS[where[0]], *where[1:], str(len(runs)), *scores])
    return lines


def difference_lines(study: Study) -> list[list[str]]:
    lines = []
    for ask, dataset, protocol, of, against in questions(study):
        pair = study.of(dataset, protocol, of), study.of(dataset, protocol, against)
        iou, accuracy = (paired(*pair, metric) for metric in METRICS)
        where = DATASETS[dataset] + (f", {protocol}" if len({p for _, p in study.settings}) > 1 else "")
        verdict = iou.verdict if iou.verdict == "open" else f"**{iou.verdict}**"
        lines.append([ask, where, of, against, str(iou.count), interval(iou), interval(accuracy), verdict])
    return lines


def interval(difference: Difference) -> str:
    """+0.012 [-0.004, +0.028]; the mean alone of a single pair."""
    if not difference.count:
        return ""
    ends = f" [{difference.low:+.{DIGITS}f}, {difference.high:+.{DIGITS}f}]" if difference.count > 1 else ""
    return f"{difference.mean:+.{DIGITS}f}{ends}"


def class_tables(study: Study) -> list[str]:
    """IoU of every class, a table per data set and protocol."""
    parts = []
    for setting in study.model_settings:
        runs = {model: study.of(*setting, model) for model in MODELS}
        every = [run for of_model in runs.values() for run in of_model.values()]
        names = dict.fromkeys(name for run in every for name in class_scores(run))
        if names:
            rows = [[name, *(cell(class_summary(runs[m], name)) or "-" for m in MODELS)] for name in names]
            title = f"{DATASETS[setting[0]]}, {setting[1]} (-: in neither truth nor prediction, or not run)"
            parts += [title, md_table(["class", *(NAMES[m] for m in MODELS)], rows)]
    return parts


def class_summary(runs: dict[int, dict], name: str) -> Summary:
    values = (class_scores(run).get(name) for run in runs.values())
    return summarize([math.nan if value is None else value for value in values])


def figure_link(study: Study, kind: str, caption: str) -> str:
    return f"![{study.plan['title']}: {caption}]({study.plan['plan']}_{kind}.png)"


def md_table(header: list[str], rows: list[list[str]], *, left: int = 1) -> str:
    """A Markdown table, its first `left` columns flush left, numbers flush right."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row).replace("  ", " ") + " |" for row in [header, rule, *rows])


def to_csv(rows: list[list]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def number(value: float) -> str:
    """For CSV: six digits, empty where there is none."""
    return f"{value:.6f}" if math.isfinite(value) else ""


def table1_rows(studies: list[Study]) -> list[list]:
    """Long form: a row per source, data set, protocol and model."""
    rows = [["source", "dataset", "protocol", "model", "iou", "iou_sd", "acc", "acc_sd", "runs"]]
    for dataset, models in PAPER.items():
        rows += [["paper", dataset, "", model, iou, "", acc, "", ""] for model, (iou, acc) in models.items()]
    for study in studies:
        for setting in study.model_settings:
            for model, scores in table1(study, *setting).items():
                numbers = [number(v) for metric in METRICS for v in (scores[metric].mean, scores[metric].spread)]
                rows.append([study.plan["plan"], *setting, model, *numbers, scores["mean_iou"].count])
    return rows


def runs_rows(studies: list[Study]) -> list[list]:
    """Every run of every study, once, with what makes it again."""
    rows = [["plan", "dataset", "protocol", "arm", "seed", "iou", "acc", "wall_time_s", "commit", "command"]]
    for study in studies:
        for name in (run["name"] for run in study.plan["runs"] if run["name"] in study.runs):
            run = study.runs[name]
            where = [run["study"][key] for key in ("plan", "dataset", "protocol", "arm", "seed")]
            what = [number(score(run, metric)) for metric in METRICS]
            made = (
                ["", "", run["failed"]]
                if "failed" in run
                else [f"{run['wall_time_s']:.0f}", run["commit"], run["command"]]
            )
            rows.append([*where, *what, *made])
    return rows


def class_rows(studies: list[Study]) -> list[list]:
    rows = [["plan", "dataset", "protocol", "arm", "class", "iou", "iou_sd", "runs"]]
    for study in studies:
        for where in study.cells:
            runs = study.of(*where)
            for name in dict.fromkeys(name for run in runs.values() for name in class_scores(run)):
                summary = class_summary(runs, name)
                numbers = number(summary.mean), number(summary.spread), summary.count
                rows.append([study.plan["plan"], *where, name, *numbers])
    return rows


def difference_rows(studies: list[Study]) -> list[list]:
    where = ["plan", "question", "dataset", "protocol", "of", "against"]
    rows = [[*where, "metric", "pairs", "difference", "low", "high"]]
    for study in studies:
        for question in questions(study):
            _, dataset, protocol, of, against = question
            for metric in METRICS:
                d = paired(study.of(dataset, protocol, of), study.of(dataset, protocol, against), metric)
                numbers = map(number, (d.mean, d.low, d.high))
                rows.append([study.plan["plan"], *question, metric, d.count, *numbers])
    return rows


def table1_latex(studies: list[Study]) -> str:
    r"""A tabular per study, for \usepackage{booktabs}."""
    models = " & & " + " & ".join(rf"\multicolumn{{2}}{{c}}{{{latex(NAMES[m])}}}" for m in MODELS)
    header = [models, "Data set & & " + " & ".join(["IoU", "Acc"] * len(MODELS))]
    return tabulars(studies, table1_lines, columns="ll" + "rr" * len(MODELS), header=header)


def differences_latex(studies: list[Study]) -> str:
    header = ["Question & Data set & Of & Against & Pairs & IoU & Acc & IoU is"]
    return tabulars(studies, difference_lines, columns="llllrrrl", header=header)


def tabulars(studies: list[Study], rows: Callable, *, columns: str, header: list[str]) -> str:
    """A tabular for every study that has rows."""
    parts = []
    for study in studies:
        body = [" & ".join(map(latex, line)) for line in rows(study)]
        ruled = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *(h + r" \\" for h in header), r"\midrule"]
        ruled += [*(line + r" \\" for line in body), r"\bottomrule", r"\end{tabular}"]
        parts += ["\n".join([f"% {study.plan['title']}", *ruled])] if body else []
    return "\n\n".join(parts) + "\n"


def latex(text: str) -> str:
    """Plain or **bold** text, escaped."""
    for character in "&%_#":
        text = text.replace(character, f"\\{character}")
    text = text.replace("±", r"$\pm$").replace("λ", r"$\lambda$")
    head, *tail = text.split("**")
    return head + "".join(rf"\textbf{{{part}}}" if i % 2 == 0 else part for i, part in enumerate(tail))


def define_flags() -> None:
    flags.DEFINE_string("results", "results", "Folder with the JSON files of runs.")
    flags.DEFINE_string("output", None, "Folder to write to; default: RESULTS/report. With --html, the file.")
    flags.DEFINE_bool("html", False, "Write one HTML page: of the results folder, or of the runs named.")
    flags.DEFINE_integer("gallery", 60, "Images on the page of runs, at most.", lower_bound=1)


def execute(words: Sequence[str]) -> None:
    options = flags.FLAGS
    results, output = Path(options.results), options.output
    if not options.html:
        if words:
            raise InputError(f"{words[0]!r} is no flag; write --name=value, or --html for a page of runs.")
        paths = write_report(results, Path(output or results / "report"))
        print(f"written: {paths[0]} and {len(paths) - 1} more files beside it")
        return
    if words:
        runs = load_runs(words)
        text = runs_page(runs, load_gallery(runs, most=options.gallery))
        default = runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html")
    else:
        text, default = results_html(results), results / "report" / "report.html"
    path = Path(output) if output else default
    write_page(text, path)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags, words="[NAME=]RUN")


if __name__ == "__main__":
    sys.exit(main())
