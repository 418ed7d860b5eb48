"""One run, or several side by side, as one HTML page: scores, curves, classes, confusion matrices, images.

In: `Run`s with their `Gallery`. Out: the text of a document that needs no other file. The same input gives the same
bytes. Imports no JAX.
"""

from html import escape

import numpy as np

from jaxseg.reporting.comparison import DATASETS
from jaxseg.reporting.html.chart import line_chart, stride, wants_log
from jaxseg.reporting.html.document import RUN_COLORS, document, key, scroll, swatch, table, value
from jaxseg.reporting.html.gallery import Gallery
from jaxseg.reporting.html.images import gallery_section
from jaxseg.reporting.html.runs import Run, series, settings
from jaxseg.reporting.terminal import MEANS

NOT_COMPARABLE = "These runs were scored on other images or in other ways: their numbers cannot be compared."
ABSENT = '<div class="bar absent">absent</div>'
PER_CLASS = {"iou": "IoU", "accuracy": "accuracy", "boundary": "boundary IoU"}


def runs_page(runs: list[Run], gallery: Gallery) -> str:
    """The page of one run, or of several side by side."""
    names = ", ".join(dict.fromkeys(DATASETS[run.data_name] for run in runs))
    title = f"{runs[0].name} on {names}" if len(runs) == 1 else f"{len(runs)} runs on {names}"
    sections = {
        "Scores": scores_table(runs) + changed_settings(runs),
        "Curves": curves(runs),
        "Classes": classes(runs),
        "Confusion": '<div class="matrices">\n' + "\n".join(confusion(run) for run in runs) + "\n</div>",
        "Images": gallery_section(runs, gallery),
    }
    links = "".join(f'<li><a href="#{name.lower()}">{name}</a></li>' for name in sections)
    parts = [
        f'<header>\n<h1>{escape(title)}</h1>\n{legend(runs)}</header>\n<nav aria-label="Sections"><ul>{links}</ul></nav>'
    ]
    parts.append("<main>")
    parts += [f'<section id="{name.lower()}">\n<h2>{name}</h2>\n{body}\n</section>' for name, body in sections.items()]
    return document(title, "\n".join([*parts, "</main>"]), made_by="python -m jaxseg.report --html")


def legend(runs: list[Run]) -> str:
    """Every run's color, what was scored, and where it comes from."""
    parts = []
    for index, run in enumerate(runs):
        data, peers = run.result["data"], run.result["peers"]
        what = [f"step {run.result['step']:,}", f"{data['name']}, {data['train']:,} + {data['val']:,} images"]
        what += [f"network <code>{escape(run.peer)}</code> of {len(peers)}"] if len(peers) > 1 else []
        text = run.result.get(
            "protocol", "Scored after the last step of training, every validation pixel, void left out."
        )
        parts.append(
            f'<article class="run"><h2>{key(index)}{escape(run.name)}</h2>\n<p>{" · ".join(what)}</p>\n'
            f"<p>{escape(text)}</p>\n{provenance(run)}</article>"
        )
    note = "" if comparable(runs) else f'<p class="note"><strong>{NOT_COMPARABLE}</strong></p>'
    return f'<div class="runs">\n{"".join(parts)}\n</div>\n{note}'


def comparable(runs: list[Run]) -> bool:
    """Whether all were scored on the same images in the same way."""
    return len({(run.result["data"]["fingerprint"], run.result.get("protocol")) for run in runs}) == 1


def provenance(run: Run) -> str:
    result = run.result
    facts = {
        "scores": run.file,
        "command": result.get("command"),
        "commit": result.get("commit"),
        "device": ", ".join(f"{name} {what}" for name, what in result.get("device", {}).items()),
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
        "data": f"{run.data_name}, fingerprint {result['data']['fingerprint']}",
    }
    facts = {name: fact for name, fact in facts.items() if fact} | settings(run)
    rows = "".join(f"<dt>{escape(k)}</dt><dd><code>{escape(str(v))}</code></dd>" for k, v in facts.items() if v)
    return f"<details><summary>Where it comes from</summary><dl>{rows}</dl></details>"


def in_bold(numbers: list[float | None], *, compared: bool) -> list[str]:
    """As text, the highest of several in bold where they may be compared."""
    known = [number for number in numbers if number is not None]
    top = max(known) if compared and len(known) > 1 else None
    return [f"<strong>{value(n)}</strong>" if n is not None and n == top else value(n) for n in numbers]


def headings(runs: list[Run]) -> list[str]:
    return [f"{key(index)}{escape(run.name)}" for index, run in enumerate(runs)]


def scores_table(runs: list[Run]) -> str:
    """A column per run; rows that no run has are left out."""
    rows = {title: [run.scores.get(metric) for run in runs] for metric, title in MEANS.items()}
    compared = comparable(runs)
    lines = [
        [title, *in_bold(numbers, compared=compared)]
        for title, numbers in rows.items()
        if any(n is not None for n in numbers)
    ]
    scored = dict.fromkeys(f"{sum(map(sum, run.scores['confusion'])):,}" for run in runs)
    return table(["", *headings(runs)], lines, label="Scores") + f'\n<p class="note">{" / ".join(scored)} pixels.</p>'


def changed_settings(runs: list[Run]) -> str:
    """Of several runs, the settings in which they differ."""
    every = [settings(run) for run in runs]
    differ = [f for f in dict.fromkeys(f for one in every for f in one) if len({one.get(f) for one in every}) > 1]
    if not differ:
        return ""
    rows = [
        [f"<code>{escape(f)}</code>", *(f"<code>{escape(one.get(f, '–'))}</code>" for one in every)] for f in differ
    ]
    inside = table(["setting", *headings(runs)], rows, left=1 + len(runs), label="Settings that differ")
    return f"\n<details><summary>{len(differ)} settings differ</summary>\n{inside}\n</details>"


def curves(runs: list[Run]) -> str:
    """Loss and its terms while training, and mean IoU on validation, a chart each."""
    ends = {
        k.removeprefix(f"{run.peer}/")
        for run in runs
        for line in run.train
        for k in line
        if k.startswith(f"{run.peer}/")
    }
    terms = sorted(
        (end for end in ends if not end.endswith(("_norm", "learning_rate"))), key=lambda end: (end != "loss", end)
    )
    charts = {"validation: mean IoU": [series(run.evals, f"{run.peer}/mean_iou") for run in runs]}
    charts |= {f"training: {term}": [series(run.train, f"{run.peer}/{term}") for run in runs] for term in terms}
    figures = [chart(title, runs, points) for title, points in charts.items() if any(points)]
    if not figures:
        return "<p>No <code>train.jsonl</code> and no <code>eval.jsonl</code> in the run's folder: no curves.</p>"
    longest = max(stride(points) for of_chart in charts.values() for points in of_chart)
    note = f"Each point of a long line is the mean of up to {longest} successive steps." if longest > 1 else ""
    names = "".join(f"<li>{name}</li>" for name in headings(runs))
    return (
        f'<ul class="legend">{names}</ul>\n<div class="charts">\n{"".join(figures)}\n</div>\n<p class="note">{note}</p>'
    )


def chart(title: str, runs: list[Run], points: list[list[tuple[float, float]]]) -> str:
    lines = {run.name: of_run for run, of_run in zip(runs, points, strict=True)}
    log = title.startswith("training") and wants_log(lines)
    label = title + ", last: " + ", ".join(f"{name} {of_run[-1][1]:.4g}" for name, of_run in lines.items() if of_run)
    caption = escape(title) + (" <small>(logarithmic)</small>" if log else "")
    return f"<figure><figcaption>{caption}</figcaption>\n{line_chart(lines, label=label, log=log)}\n</figure>\n"


def classes(runs: list[Run]) -> str:
    """A row per class: its share of the truth, and a bar of IoU per run; all class scores below."""
    labels = runs[0].labels
    truth = np.sum([np.sum(run.scores["confusion"], 1) for run in runs], 0)
    rows, absent = [], []
    for label in labels.classes:
        numbers = [run.scores["iou"][label.name] for run in runs]
        bars = "".join(bar(index, run.name, n) for index, (run, n) in enumerate(zip(runs, numbers, strict=True)))
        if all(number is None for number in numbers):
            absent.append(label.name)
            bars = ABSENT
        share = f"{100 * truth[label.train_id] / max(truth.sum(), 1):.2g} %" if truth[label.train_id] else "–"
        rows.append([swatch(label.color) + escape(label.name), share, bars])
    note = f"Absent, in neither truth nor prediction: {', '.join(absent)}. " if absent else "Every class is present. "
    body = table(["class", "of pixels", "IoU"], rows, label="IoU per class").replace(
        "<table>", '<table class="bars">', 1
    )
    names = "".join(f"<li>{name}</li>" for name in headings(runs))
    shown = f'<ul class="legend">{names}</ul>\n' if len(runs) > 1 else ""
    return (
        f'{shown}{body}\n<p class="note">{escape(note)}Absent classes are no part of means.</p>\n{class_numbers(runs)}'
    )


def bar(index: int, name: str, number: float | None) -> str:
    if number is None:
        return ABSENT
    style, title = f"--v:{number:.4f}", escape(f"{name}: {number:.4f}")
    return f'<div class="bar run-{index % RUN_COLORS}" style="{style}" title="{title}"><i></i><span>{value(number)}</span></div>'


def class_numbers(runs: list[Run]) -> str:
    """Every score of every class, folded away."""
    kinds = {k: title for k, title in PER_CLASS.items() if any(k in run.scores for run in runs)}
    head = ["class", *(f"{name}<br>{title}" for title in kinds.values() for name in headings(runs))]
    rows = []
    for name in runs[0].labels.names:
        numbers = [[run.scores.get(kind, {}).get(name) for run in runs] for kind in kinds]
        columns = [in_bold(of_kind, compared=comparable(runs)) for of_kind in numbers]
        rows.append([escape(name), *(cell for of_kind in columns for cell in of_kind)])
    return f"<details><summary>All numbers</summary>\n{table(head, rows, label='Scores per class')}\n</details>"


def confusion(run: Run) -> str:
    """A heat map of a run: of every class's pixels, where they went. Classes that nobody named are left out."""
    counts, labels = np.array(run.scores["confusion"], np.int64), run.labels.classes
    seen = [i for i in range(len(labels)) if counts[i].sum() + counts[:, i].sum()]
    head = "".join(f'<th scope="col"><span>{escape(labels[j].name)}</span></th>' for j in seen)
    rows = []
    for i in seen:
        total = counts[i].sum()
        cells = [heat(counts[i, j], total, truth=labels[i].name, called=labels[j].name) for j in seen]
        name = swatch(labels[i].color) + escape(labels[i].name)
        rows.append(f'<tr><th scope="row" class="left">{name}</th>{"".join(cells)}</tr>')
    corner = '<td class="corner">truth ↓ prediction →</td>'
    body = "\n".join(rows)
    inside = f'<table class="heat"><thead><tr>{corner}{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    box = scroll(inside, f"Confusion matrix of {run.name}")
    caption = f"{escape(run.name)}: of every class's pixels, per cent that were called …"
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{box}\n{mistakes(counts, run)}</figure>"


def heat(count: int, total: int, *, truth: str, called: str) -> str:
    share = count / total if total else 0.0
    title = escape(f"{truth} called {called}: {100 * share:.1f} % ({count:,} of {total:,} pixels)")
    strong, text = ' class="strong"' if share > 0.65 else "", f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td{strong} style="--v:{share:.3f}" title="{title}">{text}</td>'


def mistakes(counts: np.ndarray, run: Run) -> str:
    """The three cells off the diagonal with the most pixels, in words."""
    off = counts - np.diag(np.diag(counts))
    places = [divmod(int(place), len(off)) for place in np.argsort(-off, axis=None, kind="stable")[:3]]
    names = run.labels.names
    words = [
        f"{names[i]} called {names[j]} ({100 * off[i, j] / off.sum():.0f} %)" for i, j in places if off[i, j]
    ]  # fmt: skip
    return f'<p class="note">Most of the wrong pixels: {escape(", ".join(words))}.</p>\n' if words else ""
