"""The tables of a report as Markdown, CSV and LaTeX.

In: `Study`s, and runs that belong to none. Out: report.md, which links the figures that `reporting.figures` draws; table1
(the paper's Table 1) and differences as CSV and LaTeX; runs and classes as CSV. Imports no JAX.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxseg.labels import dataset_title
from jaxseg.reporting.comparison import (
    METRICS,
    MODEL_NAMES,
    MODELS,
    Difference,
    Study,
    Summary,
    bits,
    class_ious,
    paired_difference,
    rank_correlation,
    score,
    summarize,
)

# RECPAD 2024, Table 1: (IoU, Acc) of Models 1, 2, 3.
PAPER_TABLE1 = {
    "cityscapes": {"unet": (0.5931, 0.9388), "rmi": (0.5244, 0.9345), "mutual": (0.5619, 0.9342)},
    "voc2012": {"unet": (0.1965, 0.7367), "rmi": (0.0607, 0.6893), "mutual": (0.2203, 0.7539)},
}
DIGITS = 3
RUN_COLUMNS = "plan dataset protocol arm seed iou acc wall_time_s commit command truth_bits mutual_bits"
INTRODUCTION = (
    "Made by `python -m jaxseg.report` from the JSON files beside it; not edited by hand. Scores are of the reported network"
    " (in mutual learning the U-Net) after the last step, on the validation split, void left out: IoU is TP / (TP +"
    " FP + FN), averaged over the classes present; Acc the share of pixels that are right. Means over seeds ± standard"
    " deviation (n - 1); an empty cell was not run."
)
DIFFERENCES_NOTE = (
    "First minus second, over pairs of runs of the same seed (same data order; same initial weights where the networks are"
    " the same), with 95 % intervals by Student's t. One interval in twenty misses where nothing differs, and three pairs"
    ' give wide ones: "open" says that these runs do not tell, not that there is no difference.'
)
INFORMATION_NOTE = (
    "What a pixel's predicted class P tells of its true class T, from the confusion matrices: I(T; P) of H(T), in bits"
    " (equation 2 of the study). It is 0 for a prediction that is the same everywhere, whatever its accuracy."
)

Rows = list[list[str]]


def write_tables(studies: list[Study], single_runs: dict[str, dict], output: Path) -> list[Path]:
    """Writes every table into the folder `output`, which must be there; returns the paths, report.md first."""

    def of_all(rows_of: Callable[[Study], Iterable[list]]) -> list[list]:
        return [row for study in studies for row in rows_of(study)]

    texts = {
        "report.md": report_markdown(studies, single_runs),
        "runs.csv": to_csv(RUN_COLUMNS, of_all(run_rows)),
        "classes.csv": to_csv("plan dataset protocol arm class iou iou_sd runs", of_all(class_rows)),
        "table1.csv": to_csv(
            "source dataset protocol model iou iou_sd acc acc_sd runs", paper_rows() + of_all(table1_rows)
        ),
        "differences.csv": to_csv(
            "plan question dataset protocol of against metric pairs difference low high", of_all(difference_rows)
        ),
        "table1.tex": table1_latex(studies),
        "differences.tex": differences_latex(studies),
    }
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return [output / name for name in texts]


# ---- What the tables hold


def summarize_runs(runs: dict[int, dict], metric: str) -> Summary:
    return summarize(score(run, metric) for run in runs.values())


def summarize_class(runs: dict[int, dict], name: str) -> Summary:
    ious = (class_ious(run).get(name) for run in runs.values())
    return summarize(math.nan if iou is None else iou for iou in ious)


def class_names(runs: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in class_ious(run)))


def table1(study: Study, dataset: str, protocol: str) -> dict[str, dict[str, Summary]]:
    """Model -> metric -> score over seeds: a row of the paper's Table 1."""
    runs = {model: study.runs_by_seed(dataset, protocol, model) for model in MODELS}
    return {model: {metric: summarize_runs(runs[model], metric) for metric in METRICS} for model in MODELS}


def best_model(row: dict[str, dict[str, Summary]], metric: str) -> str | None:
    """The model with the highest mean; None where fewer than two have one."""
    means = {model: row[model][metric].mean for model in MODELS if row[model][metric].count}
    return max(means, key=means.get) if len(means) > 1 else None


# ---- Cells as text


def format_score(summary: Summary, *, bold: bool = False) -> str:
    """0.401 ± 0.012, empty where nothing was run."""
    if not summary.count:
        return ""
    mean = f"{summary.mean:.{DIGITS}f}"
    std = "" if math.isnan(summary.std) else f" ± {summary.std:.{DIGITS}f}"
    return (f"**{mean}**" if bold else mean) + std


def format_interval(difference: Difference) -> str:
    """+0.012 [-0.004, +0.028]; the mean alone of a single pair."""
    if not difference.count:
        return ""
    ends = f" [{difference.low:+.{DIGITS}f}, {difference.high:+.{DIGITS}f}]" if difference.count > 1 else ""
    return f"{difference.mean:+.{DIGITS}f}{ends}"


def format_number(value: float) -> str:
    """For CSV: six digits, empty where there is none."""
    return f"{value:.6f}" if math.isfinite(value) else ""


# ---- Rows as text, for Markdown and LaTeX; the best of a row in **bold**


def table1_lines(study: Study) -> Rows:
    """A row per data set and protocol, the paper's own above ours."""
    lines = []
    for dataset, protocol in study.model_settings:
        name = dataset_title(dataset)
        if dataset in PAPER_TABLE1 and name not in {line[0] for line in lines}:
            lines.append([name, "the paper", *paper_cells(PAPER_TABLE1[dataset])])
        row = table1(study, dataset, protocol)
        best = {metric: best_model(row, metric) for metric in METRICS}
        cells = [format_score(row[model][k], bold=best[k] == model) for model in MODELS for k in METRICS]
        lines.append([name, f"here, {protocol}", *cells])
    return lines


def paper_cells(scores: dict[str, tuple[float, float]]) -> list[str]:
    best = [max(column) for column in zip(*scores.values(), strict=True)]
    return [
        f"**{value:.4f}**" if value == top else f"{value:.4f}"
        for model in MODELS
        for value, top in zip(scores[model], best, strict=True)
    ]


def arm_lines(study: Study) -> Rows:
    """A row per data set, protocol and arm, the study's models first."""
    lines = []
    arms = [*MODELS, *(arm for _, _, arm in study.cells)]
    for cell in dict.fromkeys((*setting, arm) for setting in study.settings for arm in arms):
        runs = study.runs_by_seed(*cell)
        if runs or cell in study.cells:
            scores = [format_score(summarize_runs(runs, metric)) for metric in METRICS]
            lines.append([dataset_title(cell[0]), *cell[1:], str(len(runs)), *scores])
    return lines


def information_lines(study: Study) -> Rows:
    """A row per data set, protocol and arm that has runs, the study's models first."""
    lines = []
    for setting in study.settings_with_runs:
        for arm in study.arms_run(*setting):
            of_runs = [bits(run) for run in study.finished_runs(*setting, arm)]
            kinds = ([run.truth for run in of_runs], [run.mutual for run in of_runs], [run.share for run in of_runs])
            truth, mutual, share = map(summarize, kinds)
            numbers = [f"{truth.mean:.{DIGITS}f}", format_score(mutual), format_score(share)]
            lines.append([dataset_title(setting[0]), setting[1], arm, *numbers])
    return lines


def correlation_note(study: Study) -> str:
    """How IoU goes with information over the runs of each data set; empty where they are too few or too alike."""
    parts = []
    for setting in study.settings_with_runs:
        runs = [run for arm in study.arms_run(*setting) for run in study.finished_runs(*setting, arm)]
        value = rank_correlation([score(run, "mean_iou") for run in runs], [bits(run).share for run in runs])
        if not math.isnan(value):
            parts.append(f"{dataset_title(setting[0])}, {setting[1]} {value:.2f} ({len(runs)} runs)")
    return f"Rank correlation (Spearman) of IoU and I / H: {'; '.join(parts)}." if parts else ""


def difference_lines(study: Study) -> Rows:
    """A row per question and data set."""
    lines = []
    several_protocols = len({protocol for _, protocol in study.settings}) > 1
    for question in study.questions:
        iou, accuracy = (paired_difference(*study.runs_compared(question), metric) for metric in METRICS)
        where = dataset_title(question.dataset) + (f", {question.protocol}" if several_protocols else "")
        verdict = iou.verdict if iou.verdict == "open" else f"**{iou.verdict}**"
        arms = [question.of, question.against]
        numbers = [str(iou.count), format_interval(iou), format_interval(accuracy)]
        lines.append([question.ask, where, *arms, *numbers, verdict])
    return lines


# ---- Markdown


def report_markdown(studies: list[Study], single_runs: dict[str, dict]) -> str:
    """report.md."""
    parts = ["# Results", INTRODUCTION]
    for study in studies:
        parts += study_parts(study)
    if single_runs:
        rows = []
        for name, run in single_runs.items():
            scores = [f"{score(run, metric):.{DIGITS}f}" for metric in METRICS]
            rows.append([f"`{name}`", dataset_title(run["data"]["name"]), run["reported_peer"], *scores])
        parts += ["## Other runs", markdown_table(["run", "data set", "network", "IoU", "Acc"], rows, left=3)]
    return "\n\n".join(parts) + "\n"


def study_parts(study: Study) -> list[str]:
    """One study: Table 1, differences, classes, figures, failures, provenance."""
    plan = study.plan
    done = sum(run["name"] in study.runs for run in plan["runs"])
    parts = [f"## {plan['title']}", plan["note"]]
    parts.append(f"Plan `{plan['plan']}`: {done} of {len(plan['runs'])} runs done. {provenance(study)}".strip())
    if study.model_settings:
        header = ["data set", "", *(f"{MODEL_NAMES[m]}: {k}" for m in MODELS for k in ("IoU", "Acc"))]
        parts += ["### Table 1", markdown_table(header, table1_lines(study), left=2)]
    if done and {arm for _, _, arm in study.cells} - set(MODELS):
        header = ["data set", "protocol", "arm", "runs", "IoU", "Acc"]
        parts += ["### Arms", markdown_table(header, arm_lines(study), left=3)]
    if lines := difference_lines(study):
        header = ["question", "data set", "of", "against", "pairs", "IoU", "Acc", "IoU is"]
        parts += ["### Paired differences", DIFFERENCES_NOTE, markdown_table(header, lines, left=4)]
        parts.append(figure_link(study, "differences", "paired differences of mean IoU, with 95 % intervals"))
    if lines := information_lines(study):
        header = ["data set", "protocol", "arm", "H(T)", "I(T; P)", "I / H"]
        parts += ["### Information", INFORMATION_NOTE, markdown_table(header, lines, left=3)]
        parts += [note] if (note := correlation_note(study)) else []
        parts.append(figure_link(study, "information", "mean IoU over I(T; P) / H(T), a point per run"))
    if study.finished_settings:
        parts += ["### Curves", figure_link(study, "curves", "training loss and validation IoU over the steps")]
        parts += ["### Classes", *class_tables(study)]
        parts.append(figure_link(study, "confusion", "confusion matrices, in shares of the true class's pixels"))
    if failed := [f"- `{name}`: {run['failed']}" for name, run in sorted(study.runs.items()) if "failed" in run]:
        parts += ["### Not finite", "\n".join(failed)]
    return parts


def provenance(study: Study) -> str:
    """Commit, versions, device, data and time of the plan's own runs, each value once."""
    names = {run["name"] for run in study.plan["runs"]}
    runs = [run for name, run in sorted(study.runs.items()) if name in names and "commit" in run]
    if not runs:
        return ""
    commits = [str(run["commit"]) for run in runs]
    sentences = (
        "Commit " + _listed(commit[:12] + ("+changes" if commit.endswith("+changes") else "") for commit in commits),
        _listed("jax {jax}, flax {flax}, Python {python}".format(**run["versions"]) for run in runs),
        _listed("{count} × {kind}".format(**run["device"]) for run in runs),
        "data: " + _listed("{name} {fingerprint} ({train} + {val} images)".format(**run["data"]) for run in runs),
        f"{sum(run['wall_time_s'] for run in runs) / 3600:.1f} hours of training and scoring in all",
    )
    resumed = sum(run["resumed"] for run in runs)
    partly = f", of {resumed} interrupted runs only what came after the last interruption" if resumed else ""
    return "; ".join(sentences) + partly + "."


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def class_tables(study: Study) -> list[str]:
    """IoU of every class, a table per data set and protocol."""
    parts = []
    for dataset, protocol in study.model_settings:
        runs = {model: study.runs_by_seed(dataset, protocol, model) for model in MODELS}
        names = class_names(run for of_model in runs.values() for run in of_model.values())
        if names:
            rows = [[n, *(format_score(summarize_class(runs[model], n)) or "-" for model in MODELS)] for n in names]
            where = f"{dataset_title(dataset)}, {protocol}"
            parts.append(f"{where} (-: in neither truth nor prediction, or not run)")
            parts.append(markdown_table(["class", *MODEL_NAMES.values()], rows))
    return parts


def figure_link(study: Study, kind: str, caption: str) -> str:
    return f"![{study.plan['title']}: {caption}]({study.plan['plan']}_{kind}.png)"


def markdown_table(header: list[str], rows: Rows, *, left: int = 1) -> str:
    """A Markdown table, its first `left` columns flush left, numbers flush right."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row).replace("  ", " ") + " |" for row in [header, rule, *rows])


# ---- CSV


def to_csv(columns: str, rows: Iterable[list]) -> str:
    """columns: their names, with blanks between them."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns.split(), *rows])
    return stream.getvalue()


def paper_rows() -> list[list]:
    return [
        ["paper", dataset, "", model, iou, "", accuracy, "", ""]
        for dataset, models in PAPER_TABLE1.items()
        for model, (iou, accuracy) in models.items()
    ]


def table1_rows(study: Study) -> Iterator[list]:
    """A row per data set, protocol and model."""
    for setting in study.model_settings:
        for model, scores in table1(study, *setting).items():
            numbers = [format_number(v) for metric in METRICS for v in (scores[metric].mean, scores[metric].std)]
            yield [study.plan["plan"], *setting, model, *numbers, scores["mean_iou"].count]


def run_rows(study: Study) -> Iterator[list]:
    """Every run, with what makes it again; of a run that failed, why."""
    for run in (study.runs[planned["name"]] for planned in study.plan["runs"] if planned["name"] in study.runs):
        cell = [run["study"][key] for key in ("plan", "dataset", "protocol", "arm", "seed")]
        scores = [format_number(score(run, metric)) for metric in METRICS]
        information = [format_number(number) for number in bits(run)]
        if "failed" in run:
            yield [*cell, *scores, "", "", run["failed"], *information]
        else:
            yield [*cell, *scores, f"{run['wall_time_s']:.0f}", run["commit"], run["command"], *information]


def class_rows(study: Study) -> Iterator[list]:
    """A row per data set, protocol, arm and class."""
    for cell in study.cells:
        runs = study.runs_by_seed(*cell)
        for name in class_names(runs.values()):
            iou = summarize_class(runs, name)
            yield [study.plan["plan"], *cell, name, format_number(iou.mean), format_number(iou.std), iou.count]


def difference_rows(study: Study) -> Iterator[list]:
    """A row per question, data set and metric."""
    for question in study.questions:
        for metric in METRICS:
            difference = paired_difference(*study.runs_compared(question), metric)
            numbers = map(format_number, (difference.mean, difference.low, difference.high))
            yield [study.plan["plan"], *question, metric, difference.count, *numbers]


# ---- LaTeX


def table1_latex(studies: list[Study]) -> str:
    r"""A tabular per study, for \usepackage{booktabs}."""
    models = " & & " + " & ".join(rf"\multicolumn{{2}}{{c}}{{{to_latex(MODEL_NAMES[m])}}}" for m in MODELS)
    header = [models, "Data set & & " + " & ".join(["IoU", "Acc"] * len(MODELS))]
    return tabulars(studies, table1_lines, columns="ll" + "rr" * len(MODELS), header=header)


def differences_latex(studies: list[Study]) -> str:
    header = ["Question & Data set & Of & Against & Pairs & IoU & Acc & IoU is"]
    return tabulars(studies, difference_lines, columns="llllrrrl", header=header)


def tabulars(studies: list[Study], lines_of: Callable[[Study], Rows], *, columns: str, header: list[str]) -> str:
    """A tabular for every study that has rows."""
    parts = []
    for study in studies:
        if body := [" & ".join(map(to_latex, line)) for line in lines_of(study)]:
            start = [f"% {study.plan['title']}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
            rows = [*(line + r" \\" for line in header), r"\midrule", *(line + r" \\" for line in body)]
            parts.append("\n".join([*start, *rows, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def to_latex(text: str) -> str:
    """Plain or **bold** text, escaped."""
    for character in "&%_#":
        text = text.replace(character, f"\\{character}")
    text = text.replace("±", r"$\pm$").replace("λ", r"$\lambda$")
    head, *tail = text.split("**")
    return head + "".join(rf"\textbf{{{part}}}" if i % 2 == 0 else part for i, part in enumerate(tail))
