"""A figure as SVG: text as text, the page's colours, values to hover over, the same bytes again."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from maskcl.report.theme import SCHEMES, themed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

_HOVERS = "_maskcl_hovers"
_PLACES = ("d", "x", "y", "transform")


def hover(artist: Artist, texts: Sequence[str]) -> None:
    """Say what a person sees over each marker, cell or bar of an artist, in the drawing's order.

    Args:
        artist: a line with markers, a mesh, a patch; in a figure.
        texts: one for each; "" for none.
    """
    figure = artist.get_figure(root=True)
    found: dict[str, list[str]] = figure.__dict__.setdefault(_HOVERS, {})
    name = f"h{len(found)}"
    artist.set_gid(name)
    found[name] = list(texts)


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as one ``<svg>`` element; the same figure gives the same text.

    Args:
        figure: made by `drawing.new_figure`.
        name: stands before every id, so that pictures of one page do not meet.
        label: what it shows, for those who do not see it.
    """
    root = ElementTree.fromstring(_drawn(figure))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [k for k in element.attrib if "}" in k]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
    for part in [p for p in root if p.tag == "metadata" or p.find("style") is not None]:
        root.remove(part)
    for group, texts in _hovered(root, figure.__dict__.get(_HOVERS, {})):
        _add_titles(group, texts)
    _rename(root, name)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    root.attrib.pop("version")
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": label,
            "width": f"{width:.0f}", "height": f"{height:.0f}",
            "stroke-linejoin": "round",
            # Letters of 10 units: never smaller than 9 pixels, and no larger than 13.
            "style": f"width:100%;min-width:{0.9 * width:.0f}px;max-width:{1.3 * width:.0f}px",
        }
    )  # fmt: skip
    return themed(_short(ElementTree.tostring(root, encoding="unicode")))


def standalone(element: str) -> bytes:
    """An `svg` as a file of its own, which follows the light or dark of what shows it."""
    head, rest = element.split(">", 1)
    style = f"<style>{SCHEMES}svg{{background:var(--paper)}}text{{fill:var(--ink)}}</style>"
    return f"{head}>{style}{rest}\n".encode()


def _drawn(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # A font without a letter: the browser has one.
        warnings.filterwarnings("ignore", message="Glyph")
        facts = {"Date": None, "Creator": None}
        # Tight: the constrained layout cuts the side labels of square axes with many ticks.
        figure.savefig(buffer, format="svg", metadata=facts, bbox_inches="tight", pad_inches=0.04)
    return buffer.getvalue()


def _hovered(
    root: ElementTree.Element, hovers: dict[str, list[str]]
) -> list[tuple[ElementTree.Element, list[str]]]:
    return [(g, hovers[g.attrib["id"]]) for g in root.iter("g") if g.attrib.get("id") in hovers]


def _add_titles(group: ElementTree.Element, texts: list[str]) -> None:
    """A title for each marker, cell or bar; meshes become rectangles, which take less room."""
    marks = list(group.iter("use")) or [p for p in group if p.tag == "path"]
    is_mesh = len(texts) > 1 and marks and marks[0].tag == "path"
    for mark, text in zip(marks, texts, strict=False):
        if is_mesh:
            _to_rectangle(mark)
        if text:
            ElementTree.SubElement(mark, "title").text = text
        elif is_mesh:
            group.remove(mark)


def _to_rectangle(path: ElementTree.Element) -> None:
    numbers = [float(v) for v in re.findall(r"-?[\d.]+", path.attrib["d"])]
    across, down = numbers[0::2], numbers[1::2]
    path.tag = "rect"
    del path.attrib["d"]
    path.attrib.pop("clip-path", None)
    edges = {"x": min(across), "y": min(down)}
    sizes = {"width": max(across) - edges["x"], "height": max(down) - edges["y"]}
    path.attrib.update({k: f"{v:.1f}" for k, v in {**edges, **sizes}.items()})


def _rename(root: ElementTree.Element, name: str) -> None:
    """Keep the ids that something refers to, with the name before them; shorten numbers."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
        for key, value in list(element.attrib.items()):
            if key in _PLACES:  # a hundredth of a unit is enough
                element.set(key, re.sub(r"(\d+\.\d{2})\d+", r"\1", value))
            elif key == "href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif value.startswith("url(#"):
                element.set(key, f"url(#{name}-{value[5:]}")


def _short(text: str) -> str:
    """Without line breaks between elements, and with no fonts but the page's."""
    text = re.sub(r">\s+<", "><", text)
    return re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", text)
