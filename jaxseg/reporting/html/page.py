"""One HTML document that needs nothing else, no network and no other file: of runs side by side, or of a results folder.

In: `Run`s with their `Gallery`, or `Study`s. Out: the text of a document, written by the templates page.html.jinja and
runs.html.jinja, which escape what they are given. The same input gives the same bytes. Imports no JAX.
"""

import math
import re
from collections.abc import Sequence

import jinja2
import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from jaxseg.labels import VOID
from jaxseg.reporting.comparison import Study
from jaxseg.reporting.figures import RUN_COLORS, needs_log_axis, plot_runs, points_per_mean, study_figures
from jaxseg.reporting.html.gallery import Gallery
from jaxseg.reporting.html.runs import Run, series, settings
from jaxseg.reporting.html.svg import inline_svg
from jaxseg.reporting.tables import DIGITS, report_markdown
from jaxseg.reporting.terminal import information, mean_rows

CLASS_SCORES = {"iou": "IoU", "accuracy": "accuracy", "boundary": "boundary IoU"}
# Wide things scroll in a box of their own, which the keyboard reaches, and do not widen the page.
SCROLL = Markup('<div class="scroll" role="region" aria-label="{}" tabindex="0">\n{}\n</div>')
FIGURE = Markup("<figure>\n{}\n<figcaption>{}</figcaption></figure>")
NO_LOSS = ("_norm", "learning_rate")  # ends of what a log holds beside losses


def format_score(number: float | None) -> str:
    return "–" if number is None else f"{number:.{DIGITS}f}"


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxseg.reporting", "html"), autoescape=True, undefined=jinja2.StrictUndefined
)
TEMPLATES.trim_blocks = TEMPLATES.lstrip_blocks = TEMPLATES.keep_trailing_newline = True
TEMPLATES.filters |= {"score": format_score, "thousands": "{:,}".format}
TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}


# ---- A results folder


def results_page(studies: list[Study], single_runs: dict[str, dict]) -> str:
    """report.md and its figures as one page."""
    figures = {name: figure for study in studies for name, figure in study_figures(study).items()}

    def render_image(self, tokens: Sequence[Token], place: int, options, env) -> str:
        name = tokens[place].attrs["src"].removesuffix(".png")
        caption = tokens[place].content
        svg = inline_svg(figures[name], name=name, label=caption)
        return FIGURE.format(SCROLL.format(caption, svg), caption)

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", render_image)
    tokens = markdown.parse(report_markdown(studies, single_runs))
    mark_headers_and_figures(tokens)
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = re.sub(r"<table>.*?</table>", lambda table: SCROLL.format("Table", Markup(table[0])), body, flags=re.DOTALL)
    return TEMPLATES.get_template("page.html.jinja").render(title=tokens[1].content, body=Markup(body))


def mark_headers_and_figures(tokens: list[Token]) -> None:
    """The first cell of a row heads it, and a figure is no part of a paragraph."""
    for before, opened, inside, closed in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        if opened.type == "th_open":
            opened.attrSet("scope", "col")
        elif before.type == "tr_open":
            opened.attrSet("scope", "row")
            opened.tag = closed.tag = "th"
        elif inside.children and inside.children[0].type == "image":
            opened.hidden = closed.hidden = True


# ---- Runs


def runs_page(runs: list[Run], gallery: Gallery) -> str:
    """The page of one run, or of several side by side."""
    names = ", ".join(dict.fromkeys(run.labels.display_name for run in runs))
    charts = run_charts(runs)
    page = {
        "title": f"{runs[0].name} on {names}" if len(runs) == 1 else f"{len(runs)} runs on {names}",
        "runs": runs,
        "run_colors": len(RUN_COLORS),
        "provenance": [provenance(run) for run in runs],
        "comparable": len({(run.result["data"]["fingerprint"], run.result.get("protocol")) for run in runs}) == 1,
        "scores": mean_rows([run.scores for run in runs]),
        "truth_bits": truth_bits(runs),
        "pixels": list(dict.fromkeys(int(np.sum(run.scores["confusion"])) for run in runs)),
        "settings": changed_settings(runs),
        "charts": charts,
        "points_per_mean": max((chart["points_per_mean"] for chart in charts), default=1),
        "classes": class_rows(runs),
        "class_scores": class_scores(runs),
        "confusions": [confusion(run) for run in runs],
        "gallery": gallery,
        "gallery_note": gallery_note(runs, gallery),
        "gallery_data": gallery_data(runs, gallery),
        "without_gallery": [run for run in runs if not run.images or not run.gallery_folder.is_dir()] or runs,
        "void": VOID,
    }
    return TEMPLATES.get_template("runs.html.jinja").render(page)


def provenance(run: Run) -> dict[str, str]:
    """Where a run's scores come from, and every setting."""
    facts = {"scores": run.file, "command": run.result.get("command"), "commit": run.result.get("commit")}
    facts |= {kind: ", ".join(f"{k} {v}" for k, v in run.result[kind].items()) for kind in ("device", "versions")}
    facts["data"] = f"{run.data_name}, fingerprint {run.result['data']['fingerprint']}"
    return {name: str(fact) for name, fact in (facts | settings(run)).items() if fact}


def truth_bits(runs: list[Run]) -> list[str]:
    """H(truth) where it was measured, each value once."""
    known = [bits for run in runs if (bits := information(run.scores, "truth")) is not None]
    return list(dict.fromkeys(map(format_score, known)))


def changed_settings(runs: list[Run]) -> dict[str, list[str]]:
    """The settings in which several runs differ -> their values."""
    of_runs = [settings(run) for run in runs]
    names = dict.fromkeys(name for one in of_runs for name in one)
    values = {name: [one.get(name, "–") for one in of_runs] for name in names}
    return {name: of_name for name, of_name in values.items() if len(set(of_name)) > 1}


def run_charts(runs: list[Run]) -> list[dict]:
    """Mean IoU on validation, then loss and its terms while training, a chart each."""
    logged = dict.fromkeys(key for run in runs for line in run.train for key in line if key.startswith(f"{run.peer}/"))
    terms = {key.split("/", 1)[1] for key in logged if not key.endswith(NO_LOSS)}
    lines = {"validation: mean IoU": [series(run.eval, f"{run.peer}/mean_iou") for run in runs]}
    for term in sorted(terms, key=lambda term: (term != "loss", term)):
        lines[f"training: {term}"] = [series(run.train, f"{run.peer}/{term}") for run in runs]
    charts = []
    for title, points in lines.items():
        if any(points):
            log = title.startswith("training") and needs_log_axis(points)
            last = [f"{run.name} {line[-1][1]:.4g}" for run, line in zip(runs, points, strict=True) if line]
            label = f"{title}, last: {', '.join(last)}"
            names = [run.name for run in runs]
            svg = inline_svg(plot_runs(points, log=log), name=f"chart-{len(charts)}", label=label, titles=names)
            longest = max(map(points_per_mean, points))
            charts.append({"title": title, "log": log, "svg": svg, "points_per_mean": longest})
    return charts


def class_rows(runs: list[Run]) -> list[dict]:
    """Per class its share of the true pixels, and IoU per run."""
    truth = np.sum([run.scores["confusion"] for run in runs], axis=(0, 2))
    share = truth / max(truth.sum(), 1)
    rows = []
    for label in runs[0].labels.classes:
        ious = [run.scores["iou"][label.name] for run in runs]
        absent = all(iou is None for iou in ious)
        rows.append({"label": label, "share": share[label.train_id], "ious": ious, "absent": absent})
    return rows


def class_scores(runs: list[Run]) -> dict[str, dict[str, list[float | None]]]:
    """Score -> class -> value per run, of the scores that any run has."""
    names = runs[0].labels.names
    columns = {
        title: {name: [run.scores.get(kind, {}).get(name) for run in runs] for name in names}
        for kind, title in CLASS_SCORES.items()
        if any(kind in run.scores for run in runs)
    }
    if any("information" in run.scores for run in runs):
        of_runs = [run.scores.get("information", {"by_class": {}})["by_class"] for run in runs]
        columns["information (bits)"] = {name: [bits.get(name, {}).get("mutual") for bits in of_runs] for name in names}
    return columns


def confusion(run: Run) -> dict:
    """The matrix of the classes that occur in truth or prediction, and the three most frequent mistakes in words."""
    counts = np.array(run.scores["confusion"], np.int64)
    seen = [label for label in run.labels.classes if counts[label.train_id].any() or counts[:, label.train_id].any()]
    ids = [label.train_id for label in seen]
    wrong = counts - np.diag(np.diag(counts))
    mistakes = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:3]:
        i, j = np.unravel_index(place, wrong.shape)
        if wrong[i, j]:
            names = run.labels.names
            mistakes.append(f"{names[i]} called {names[j]} ({100 * wrong[i, j] / wrong.sum():.0f} %)")
    rows = list(zip(seen, counts[np.ix_(ids, ids)].tolist(), strict=True))
    return {"labels": seen, "rows": rows, "mistakes": mistakes}


def gallery_note(runs: list[Run], gallery: Gallery) -> str:
    """Which images are shown, and why not all."""
    shown = len(gallery.examples)
    parts = [f"{shown:,} of {gallery.total:,} images."]
    if shown == gallery.total:
        parts = [f"All {gallery.total:,} images."]
    elif shown + gallery.without < gallery.total:
        worst = f"the {math.ceil(shown / 2)} worst by the IoU of {runs[0].name}"
        parts = [f"{shown:,} of {gallery.total:,} images: {worst}, the others evenly spread over the rest."]
    if gallery.without:
        parts.append(f"Of {gallery.without:,} no picture was kept.")
    if gallery.unpaired:
        parts.append(f"{gallery.unpaired:,} images that only some of the runs have are left out.")
    return " ".join(parts)


def gallery_data(runs: list[Run], gallery: Gallery) -> dict:
    """What page.js sorts and filters by: per example and run the mean IoU and the classes' IoUs; color -> class."""

    def rounded(iou: dict[str, float | None]) -> list[float | None]:
        values = [iou.get(name) for name in runs[0].labels.names]
        return [None if value is None else round(value, 6) for value in values]

    return {
        "mean": [[of_run["mean_iou"] for of_run in example.scores] for example in gallery.examples],
        "iou": [[rounded(of_run["iou"]) for of_run in example.scores] for example in gallery.examples],
        "colors": {",".join(map(str, row.color)): row.name for row in runs[0].labels.classes},
    }
