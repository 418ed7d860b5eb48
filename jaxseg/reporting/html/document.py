"""An HTML document that needs nothing else, no network and no other file; and report.md as one.

In: HTML text for its body; or the text of report.md with its figures. Out: a document whose style and script are
page.css and page.js, written into it. Imports no JAX.
"""

import re
from html import escape
from importlib import resources

DIGITS = 3
RUN_COLORS = 8  # --run-0 … --run-7 of page.css; further runs begin again
# The browser itself keeps the page from loading anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: str, *, made_by: str) -> str:
    """A whole document around `body`."""
    style, script = (
        resources.files("jaxseg.reporting.html").joinpath(f"page.{kind}").read_text() for kind in ("css", "js")
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
{body}
<footer><p>Made by <code>{escape(made_by)}</code>; this file holds everything that it shows.</p></footer>
<script>
{script}</script>
</body>
</html>
"""


def table(head: list[str], rows: list[list[str]], *, left: int = 1, label: str) -> str:
    """Cells are HTML. The first column heads its row; the first `left` ones are flush left; scrolls in its own box."""
    kinds = [' class="left"'] * left + [""] * (len(head) - left)
    cells = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = []
    for first, *others in rows:
        columns = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        body.append(f'<tr><th scope="row"{kinds[0]}>{first}</th>{columns}</tr>')
    inside = f"<thead><tr>{cells}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>"
    return scroll(f"<table>{inside}</table>", label)


def scroll(inside: str, label: str) -> str:
    """A box of its own, so that what is wide does not widen the page; the keyboard reaches it."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">\n{inside}\n</div>'


def key(index: int) -> str:
    """A dot in the color of a run."""
    return f'<span class="key run-{index % RUN_COLORS}" aria-hidden="true"></span>'


def value(number: float | None) -> str:
    return "–" if number is None else f"{number:.{DIGITS}f}"


def swatch(color: tuple[int, int, int]) -> str:
    return '<span class="swatch" style="background:#{:02x}{:02x}{:02x}"></span>'.format(*color)


def report_page(text: str, figures: dict[str, str]) -> str:
    """The page of report.md's text. figures: name of a picture linked there, without its ending -> its SVG."""
    parts = [block(part, figures) for part in text.strip().split("\n\n")]
    title = re.search(r"^# (.*)", text)[1]
    body = "\n".join(parts)
    return document(title, f'<main class="report">\n{body}\n</main>', made_by="python -m jaxseg.report --html")


def block(part: str, figures: dict[str, str]) -> str:
    """One block of the Markdown that a report consists of: heading, table, list, picture or paragraph."""
    if match := re.fullmatch(r"(#+) (.*)", part):
        return f"<h{len(match[1])}>{inline(match[2])}</h{len(match[1])}>"
    if match := re.fullmatch(r"!\[(.*)\]\((.*)\.png\)", part):
        drawn = themed(figures[match[2]], match[2], match[1])
        return f"<figure>\n{scroll(drawn, match[1])}\n<figcaption>{inline(match[1])}</figcaption></figure>"
    lines = part.split("\n")
    if part.startswith("| "):
        head, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        cells = [[inline(cell) for cell in row] for row in rows]
        return table([inline(cell) for cell in head], cells, left=rule.count("---"), label="Table")
    if part.startswith("- "):
        return "<ul>" + "".join(f"<li>{inline(line.removeprefix('- '))}</li>" for line in lines) + "</ul>"
    return f"<p>{inline(part)}</p>"


def inline(text: str) -> str:
    """Escaped, with **strong** and `code`."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def themed(svg: str, name: str, label: str) -> str:
    """matplotlib's SVG as part of a page: names of its own, black and white from the page's style."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r"#ffffff\b", "var(--page)", svg).replace("#000000", "var(--ink)")
    attributes = re.match(r"<svg([^>]*)>", svg)[1]
    width, box = (re.search(rf'{attribute}="([^"]+)"', attributes)[1] for attribute in (r"\bwidth", "viewBox"))
    opened = f'<svg class="plot" viewBox="{box}" style="width:{width}" role="img" aria-label="{escape(label)}">'
    return opened + svg[svg.index(">") + 1 :].strip()
