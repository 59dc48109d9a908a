"""A matplotlib figure as SVG: for a page under a strict Content-Security-Policy, and as files for papers.

Inline SVG in the page keeps text as text, takes the page's ink colour (``currentColor``) and its font, has ids of its own, and
no style attributes: a policy that allows style sheets by hash only would drop those silently, and with them every colour.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from ..runs.files import atomic_file

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INK = "#010203"
"""Colour of text and axes in figures; on the page, ``currentColor``."""
# What a style attribute may turn into; anything else in one is dropped.
PRESENTATION = {
    *("fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray"),
    *("stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "opacity"),
    *("text-anchor", "font-size", "font-weight", "font-style"),
}
ELEMENTS = {"svg", "g", "path", "defs", "use", "text", "tspan", "clipPath", "rect", "circle"}


def save(figure: Any, folder: Path, name: str) -> str:
    """Write ``name.svg`` and ``name.png`` (200 dots an inch), on white, equal for equal figures. Returns the SVG.

    Laid out once and drawn once a file. Drawing is most of what a report costs, and ``figure.savefig`` draws what has been laid
    out twice, the first time for nothing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    agg = FigureCanvasAgg(figure)
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    figure.set_facecolor("white")
    drawn = io.StringIO()
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None})
    with atomic_file(folder / f"{name}.svg") as f:
        f.write(drawn.getvalue().encode())
    figure.set_dpi(200)  # after the SVG, which sets its own
    with atomic_file(folder / f"{name}.png") as f:
        agg.print_png(f, metadata={"Software": None})
    return drawn.getvalue()


def inline(drawn: str, name: str, label: str) -> str:
    """What :func:`save` returned as an ``<svg>`` element on no ground; ``label`` is read out by screen readers, ``name`` begins
    every id.
    """
    root = ET.fromstring(drawn)
    (figure,) = root.iterfind(f"{{{SVG}}}g[@id='figure_1']")
    (ground,) = figure.iterfind(f"{{{SVG}}}g[@id='patch_1']")  # the figure's own; axes have none, see style.RC
    figure.remove(ground)
    _clean(root, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    ET.register_namespace("", SVG)
    return ET.tostring(root, encoding="unicode")


def _clean(element: Any, name: str) -> None:
    for child in list(element):
        if _local(child.tag) not in ELEMENTS:
            element.remove(child)
        else:
            _clean(child, name)
    given = {_local(k): v for k, v in element.attrib.items()}
    element.attrib.clear()
    for key, value in {**given, **_declarations(given.pop("style", ""))}.items():
        if key.startswith("on") or key in ("style", "space"):
            continue
        if key == "id":
            value = f"{name}-{value}"
        elif key == "href":
            value = f"#{name}-{value.lstrip('#')}"
        element.set(key, re.sub(r"url\(#", f"url(#{name}-", value).replace(INK, "currentColor"))


def _declarations(style: str) -> dict[str, str]:
    found = dict(part.split(":", 1) for part in style.split(";") if ":" in part)
    found = {k.strip(): v.strip() for k, v in found.items()}
    if font := re.match(r"(?:(italic|normal) )?(?:(bold|\d{3}) )?([\d.]+px)", found.pop("font", "")):
        found |= {k: v for k, v in zip(("font-style", "font-weight", "font-size"), font.groups(), strict=True) if v}
    return {k: v for k, v in found.items() if k in PRESENTATION}


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]
