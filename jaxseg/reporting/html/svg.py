"""A matplotlib figure as part of a page: inline SVG whose colors are the page's, in the dark as well.

In: a figure of `reporting.figures`. Out: an <svg> element without outer references, the same bytes for the same figure and
matplotlib. Imports no JAX.
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from jaxseg.reporting.figures import RUN_COLORS, to_svg

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
PAGE_COLORS = {"#ffffff": "var(--page)", "#000000": "var(--ink)"}
PAGE_COLORS |= {color: f"var(--run-{index})" for index, color in enumerate(RUN_COLORS)}


def inline_svg(figure: Figure, *, name: str, label: str, titles: Sequence[str] = ()) -> Markup:
    """The figure as an element of a page.

    Args:
      figure: what is drawn; text is set in the page's fonts.
      name: stands before every id of the figure, so that a page can hold several.
      label: what a screen reader says.
      titles: what is shown where the pointer rests on the parts with the gids "run-0", "run-1", ….
    """
    root = ElementTree.fromstring(to_svg(figure, fonttype="none"))
    for part in ("metadata", f"defs[{SVG}style]"):  # page.css has the style, for plots only
        root.remove(root.find(f"{SVG}{part}"))
    for element in list(root.iter()):
        element.tag = element.tag.removeprefix(SVG)
        if element.tag == "image":  # its id is a hash of its pixels: two alike would have one
            element.attrib.pop("id", None)
        if match := re.fullmatch(r"run-(\d+)", element.get("id", "")):
            title = ElementTree.Element("title")
            title.text = titles[int(match[1])]
            element.insert(0, title)
        element.attrib = {key.removeprefix(XLINK): adapt(key, value, name) for key, value in element.attrib.items()}
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def adapt(attribute: str, value: str, name: str) -> str:
    """An attribute's value: ids with `name` before them, colors and fonts of the page, no more digits than a screen shows."""
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "d":
        return re.sub(r"(\.\d\d)\d+", r"\1", value)
    if attribute == "style":
        value = re.sub(r"#[0-9a-f]{6}", lambda color: PAGE_COLORS.get(color[0], color[0]), value)
        value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", re.sub(r"font-family: [^;]*; *", "", value))
    return re.sub(r"^(url\()?#", rf"\g<0>{name}-", value)
