"""The images of a page of runs: one row per image with truth, predictions and errors, and what the script sorts them by.

In: `Run`s and their `Gallery`. Out: the HTML of the section; page.js filters, sorts and enlarges. Imports no JAX.
"""

import json
import math
from html import escape

from jaxseg.labels import VOID
from jaxseg.reporting.html.document import key, swatch, value
from jaxseg.reporting.html.gallery import Example, Gallery, Picture
from jaxseg.reporting.html.runs import Run

LIGHTBOX = """<dialog id="large" aria-label="Enlarged picture">
<p><strong id="large-title"></strong> <span id="large-class"></span></p>
<div id="large-place"></div>
<p class="note">← → other picture of this image · Esc closes</p>
<p><button type="button" id="large-back">← Back</button> <button type="button" id="large-next">Next →</button>
<button type="button" id="large-close">Close</button></p>
</dialog>"""


def gallery_section(runs: list[Run], gallery: Gallery) -> str:
    """Controls, legend and one row per example; or how to get them."""
    if not gallery.examples and gallery.unpaired and not gallery.total:
        return f"<p>The runs have no image in common; their {gallery.unpaired:,} images are left out.</p>"
    if not gallery.examples:
        lacking = [run for run in runs if not run.images or not run.gallery.is_dir()] or runs
        commands = "".join(f"<li><code>{escape(run.command)}</code></li>" for run in lacking)
        return f"<p>No images were kept with these scores. They are made by</p>\n<ul>{commands}</ul>"
    rows = "\n".join(example_row(place, example, runs) for place, example in enumerate(gallery.examples))
    many = ' class="examples several"' if len(runs) > 1 else ' class="examples"'
    return (
        f'<p class="note">{how_many(runs, gallery)}</p>\n{controls(runs, gallery)}\n{class_legend(runs, gallery)}\n'
        f'<ol id="examples"{many} style="--runs:{len(runs)}">\n{rows}\n</ol>\n{gallery_data(runs, gallery)}\n{LIGHTBOX}'
    )


def how_many(runs: list[Run], gallery: Gallery) -> str:
    shown, total = len(gallery.examples), gallery.total
    text = f"All {total:,} images." if shown == total else f"{shown:,} of {total:,} images"
    if shown + gallery.without < total:
        worst = f"the {math.ceil(shown / 2)} worst by the IoU of {escape(runs[0].name)}"
        text += f": {worst}, the others evenly spread over the rest."
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
    """Colors of the classes that occur, and of the error map."""
    used = set().union(*(example.used for example in gallery.examples))
    items = [swatch(row.color) + escape(row.name) for row in runs[0].labels.classes if row.train_id in used]
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
    title = f"<h3>{escape(example.id)} <small>{example.number}</small></h3>"
    return (
        f'<li class="example" id="example-{place}" data-id="{escape(example.id)}">\n{title}\n'
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
        "colors": {",".join(map(str, row.color)): row.name for row in classes},
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="gallery-data">{text}</script>'
