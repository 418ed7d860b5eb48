"""One run, or several side by side, as one HTML page: scores, curves, classes, confusion matrices, images.

In: `Run`s with their `Gallery`. Out: the text of a document that needs no other file. The same input gives the same
bytes. Imports no JAX.
"""

import json
from html import escape

import numpy as np

from jaxseg.chart import COLOURS, line_chart, stride, wants_log
from jaxseg.document import document, scroll, table
from jaxseg.gallery import Example, Gallery, Picture
from jaxseg.labels import VOID
from jaxseg.runs import Run, series, settings

SCORES = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "boundary_iou": "boundary IoU",
}
PER_CLASS = {"iou": "IoU", "accuracy": "accuracy", "boundary": "boundary IoU"}
DIGITS = 3


def runs_page(runs: list[Run], gallery: Gallery) -> str:
    """The page of one run, or of several side by side."""
    names = ", ".join(dict.fromkeys(run.data_name for run in runs))
    title = f"{runs[0].name} on {names}" if len(runs) == 1 else f"{len(runs)} runs on {names}"
    sections = {
        "Scores": scores_table(runs) + changed_settings(runs),
        "Curves": curves(runs),
        "Classes": classes(runs),
        "Confusion": "\n".join(confusion(run) for run in runs),
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
    """Every run's colour, what was scored, and where it comes from."""
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
    prints = {run.result["data"]["fingerprint"] for run in runs}
    note = "" if len(prints) == 1 else '<p class="note">The runs were scored on data with different fingerprints.</p>'
    return f'<div class="runs">\n{"".join(parts)}\n</div>\n{note}'


def key(index: int) -> str:
    """A dot in the colour of a run."""
    return f'<span class="key run-{index % COLOURS}" aria-hidden="true"></span>'


def provenance(run: Run) -> str:
    result, device = run.result, run.result.get("device", {})
    facts = {
        "scores": run.file,
        "command": result.get("command"),
        "commit": result.get("commit"),
        "device": "{count} × {kind} ({platform})".format(**device) if device else None,
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
        "data": f"{run.data_name}, fingerprint {result['data']['fingerprint']}",
    }
    facts |= settings(run)
    rows = "".join(
        f"<dt>{escape(k)}</dt><dd><code>{escape(str(v))}</code></dd>" for k, v in facts.items() if v is not None
    )
    return f"<details><summary>Where it comes from</summary><dl>{rows}</dl></details>"


def value(number: float | None) -> str:
    return "–" if number is None else f"{number:.{DIGITS}f}"


def in_bold(numbers: list[float | None]) -> list[str]:
    """As text, the highest of several in bold."""
    known = [number for number in numbers if number is not None]
    top = max(known) if len(known) > 1 else None
    return [f"<strong>{value(n)}</strong>" if n is not None and n == top else value(n) for n in numbers]


def headings(runs: list[Run]) -> list[str]:
    return [f"{key(index)}{escape(run.name)}" for index, run in enumerate(runs)]


def scores_table(runs: list[Run]) -> str:
    """A column per run; rows that no run has are left out."""
    rows = {title: [run.scores.get(metric) for run in runs] for metric, title in SCORES.items()}
    lines = [[title, *in_bold(numbers)] for title, numbers in rows.items() if any(n is not None for n in numbers)]
    scored = {f"{sum(map(sum, run.scores['confusion'])):,}" for run in runs}
    return (
        table(["", *headings(runs)], lines, label="Scores")
        + f'\n<p class="note">{" / ".join(sorted(scored))} pixels.</p>'
    )


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
        if all(number is None for number in numbers):
            absent.append(label.name)
        bars = "".join(bar(index, run.name, n) for index, (run, n) in enumerate(zip(runs, numbers, strict=True)))
        share = f"{100 * truth[label.train_id] / max(truth.sum(), 1):.2g} %" if truth[label.train_id] else "–"
        rows.append([swatch(label.colour) + escape(label.name), share, bars])
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
        return '<div class="bar absent">absent</div>'
    style, title = f"--v:{number:.4f}", escape(f"{name}: {number:.4f}")
    return f'<div class="bar run-{index % COLOURS}" style="{style}" title="{title}"><i></i><span>{value(number)}</span></div>'


def swatch(colour: tuple[int, int, int]) -> str:
    return '<span class="swatch" style="background:#{:02x}{:02x}{:02x}"></span>'.format(*colour)


def class_numbers(runs: list[Run]) -> str:
    """Every score of every class, folded away."""
    kinds = {k: title for k, title in PER_CLASS.items() if any(k in run.scores for run in runs)}
    head = ["class", *(f"{name}<br>{title}" for title in kinds.values() for name in headings(runs))]
    rows = []
    for name in runs[0].labels.names:
        columns = [in_bold([run.scores.get(kind, {}).get(name) for run in runs]) for kind in kinds]
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
        name = swatch(labels[i].colour) + escape(labels[i].name)
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
    strong, text = ' class="strong"' if share > 0.5 else "", f"{100 * share:.0f}" if share >= 0.005 else ""
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


def gallery_section(runs: list[Run], gallery: Gallery) -> str:
    """Controls, legend and one row per example; or how to get them."""
    if not gallery.examples:
        lacking = [run for run in runs if not run.images or not run.gallery.is_dir()] or runs
        commands = "".join(f"<li><code>{escape(run.command)}</code></li>" for run in lacking)
        return f"<p>No images were kept with these scores. They are made by</p>\n<ul>{commands}</ul>"
    rows = "\n".join(example_row(place, example, runs) for place, example in enumerate(gallery.examples))
    many = ' class="examples several"' if len(runs) > 1 else ' class="examples"'
    return (
        f'<p class="note">{how_many(gallery)}</p>\n{controls(runs, gallery)}\n{class_legend(runs, gallery)}\n'
        f'<ol id="examples"{many} style="--runs:{len(runs)}">\n{rows}\n</ol>\n{gallery_data(runs, gallery)}\n{LIGHTBOX}'
    )


LIGHTBOX = """<dialog id="large" aria-label="Enlarged picture">
<p><strong id="large-title"></strong> <span id="large-class"></span></p>
<div id="large-place"></div>
<p class="note">← → other picture of this image · Esc closes</p>
<p><button type="button" id="large-back">← Back</button> <button type="button" id="large-next">Next →</button>
<button type="button" id="large-close">Close</button></p>
</dialog>"""


def how_many(gallery: Gallery) -> str:
    shown, total = len(gallery.examples), gallery.total
    text = f"All {total:,} images." if shown == total else f"{shown:,} of {total:,} images"
    if shown + gallery.without < total:
        text += ": by the first run's IoU the worst, and others evenly spread over the rest."
    elif shown < total:
        text += "."
    text += f" Of {gallery.without:,} no picture was kept." if gallery.without else ""
    return text + (
        f" {gallery.unpaired:,} images that only some of the runs have are left out." if gallery.unpaired else ""
    )


def controls(runs: list[Run], gallery: Gallery) -> str:
    """Which images, in which order. The script does the rest; without it, all are there, worst first."""
    names = runs[0].labels.names
    scored = {
        name
        for example in gallery.examples
        for s in example.scores
        for name, iou in s["iou"].items()
        if iou is not None
    }
    by_class = options([("", "all classes"), *((str(i), name) for i, name in enumerate(names) if name in scored)])
    by_run = options([(str(index), run.name) for index, run in enumerate(runs)])
    hidden = " hidden" if len(runs) == 1 else ""
    return f"""<form class="controls" id="controls">
<label>Class <select id="by-class">{by_class}</select></label>
<label{hidden}>IoU of <select id="by-run">{by_run}</select></label>
<label>Order <select id="order"><option value="1">worst first</option><option value="-1">best first</option></select></label>
<output id="count" for="by-class by-run order"></output>
</form>"""


def options(choices: list[tuple[str, str]]) -> str:
    return "".join(f'<option value="{choice}">{escape(text)}</option>' for choice, text in choices)


def class_legend(runs: list[Run], gallery: Gallery) -> str:
    """Colours of the classes that occur, and of the error map."""
    used = set().union(*(example.used for example in gallery.examples))
    items = [swatch(row.colour) + escape(row.name) for row in runs[0].labels.classes if row.train_id in used]
    items += ['<span class="swatch void"></span>void, not scored'] if VOID in used else []
    items.append('<span class="swatch wrong"></span>wrong')
    return '<ul class="legend">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def example_row(place: int, example: Example, runs: list[Run]) -> str:
    scores = "".join(
        f'<li>{key(index) if len(runs) > 1 else ""}<span class="score">{value(s["mean_iou"])}</span></li>'
        for index, s in enumerate(example.scores)
    )
    what = f"{example.id} (image {example.number})"
    panels = [panel(example.image, "image", "photo", what), panel(example.truth, "truth", "map", what)]
    for index, (run, prediction, error) in enumerate(zip(runs, example.predictions, example.errors, strict=True)):
        of = f"{key(index)}{escape(run.name)}: " if len(runs) > 1 else ""
        plain = f"{run.name}: " if len(runs) > 1 else ""
        panels.append(panel(prediction, f"{plain}prediction", "map", what, caption=f"{of}prediction"))
        panels.append(panel(error, f"{plain}errors", "map error", what, caption=f"{of}errors"))
    return (
        f'<li class="example" id="example-{place}">\n<h3>{escape(example.id)} <small>{example.number}</small></h3>\n'
        f'<ul class="scores"><li class="what">mean IoU</li>{scores}</ul>\n<div class="panels">\n{"".join(panels)}</div>\n</li>'
    )


def panel(picture: Picture, title: str, kind: str, what: str, *, caption: str | None = None) -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    alt = escape(f"{title} of {what}")
    image = f'<img class="{kind}" src="{picture.uri}" {size} loading="lazy" decoding="async" alt="{alt}">'
    return (
        f'<figure data-title="{escape(title)}"><button type="button">{image}</button>'
        f"<figcaption>{caption or escape(title)}</figcaption></figure>\n"
    )


def gallery_data(runs: list[Run], gallery: Gallery) -> str:
    """What the script sorts and filters by: per example and run the mean IoU and the classes' IoUs."""
    names, classes = runs[0].labels.names, runs[0].labels.classes
    iou = [[[s["iou"].get(name) for name in names] for s in example.scores] for example in gallery.examples]
    data = {
        "mean": [[s["mean_iou"] for s in example.scores] for example in gallery.examples],
        "iou": [[[None if v is None else round(v, 6) for v in of_run] for of_run in row] for row in iou],
        "colours": {",".join(map(str, row.colour)): row.name for row in classes},
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="gallery-data">{text}</script>'
