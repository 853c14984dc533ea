"""Draws the places of the package in layers, with arrows to what each of them imports, into docs/architecture.svg.

    PYTHONPATH=src python tools/draw_layers.py

A place stands one layer above the highest of those that it imports. Of its imports, those are drawn that do not follow
from others: where solve imports executors and these import field, there is no arrow from solve to field. The picture is
a function of the imports alone; a test compares it with the file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
sys.path.insert(0, str(ROOT / "tests"))

from test_package import LAYERS, SRC, imports_of, place_of  # noqa: E402

ROW, BOX, GAP, PAD, LANE = 78, 34, 26, 24, 18
TITLES = {"__init__": "torchaca"}
STYLE = """
    text { font: 14px sans-serif; text-anchor: middle; fill: #1c2733 }
    rect { stroke: #41586f; stroke-width: 1.2; fill: #ffffff }
    rect.folder { fill: #dfe9f3 }
    path { stroke: #6b7f93; stroke-width: 1.3; fill: none; marker-end: url(#head) }
    path.head { fill: #6b7f93; stroke: none; marker-end: none }
"""


def imports() -> dict[str, set[str]]:
    """The places that each place imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        place, package = place_of(path), ".".join(path.parent.relative_to(SRC).parts)
        used = {one.place for one in imports_of(path.read_text(), package) if one.top == "torchaca"}
        found.setdefault(place, set()).update(used - {place})
    return {place: found[place] for place in (*LAYERS, "torch_ACA") if place in found}


def reduced(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """The arrows that do not follow from others."""
    below: dict[str, set[str]] = {}
    for place, used in graph.items():  # in the order of LAYERS: what a place imports comes before it
        below[place] = used.union(*(below[other] for other in used))
    direct = {place: used.difference(*(below[other] for other in used)) for place, used in graph.items()}
    order = [*graph]
    return {place: sorted(used, key=order.index) for place, used in direct.items()}


@dataclass(eq=False)
class Spot:
    """A place in the picture, or where an arrow passes through a layer."""

    title: str = ""
    folder: bool = False
    x: float = 0.0
    above: list[Spot] = field(default_factory=list)
    below: list[Spot] = field(default_factory=list)

    @property
    def width(self) -> float:
        return 8.2 * len(self.title) + 26 if self.title else LANE


def arranged(arrows: dict[str, list[str]]) -> tuple[list[list[Spot]], list[list[Spot]]]:
    """The layers from the lowest to the highest, and the way of each arrow, from above."""
    height: dict[str, int] = {}
    for place, used in arrows.items():
        height[place] = 1 + max((height[other] for other in used), default=-1)
    layers: list[list[Spot]] = [[] for _ in range(1 + max(height.values()))]
    spots = {}
    for place in arrows:
        folder = (SRC / "torchaca" / place).is_dir() or place == "torch_ACA"
        spots[place] = Spot(TITLES.get(place, place), folder)
        layers[height[place]].append(spots[place])
    ways = []
    for place, used in arrows.items():
        for other in used:
            between = [Spot() for _ in range(height[other] + 1, height[place])]
            for layer, spot in zip(layers[height[other] + 1 :], reversed(between), strict=False):
                layer.append(spot)
            way = [spots[place], *between, spots[other]]
            for upper, lower in pairwise(way):
                upper.below.append(lower)
                lower.above.append(upper)
            ways.append(way)
    for n in range(24):  # each layer follows the one before it, downwards and upwards in turn
        for layer in layers if n % 2 else reversed(layers):
            settle(layer, upwards=bool(n % 2))
    left = min(spot.x - spot.width / 2 for layer in layers for spot in layer)
    for layer in layers:
        for spot in layer:
            spot.x += PAD - left
    return layers, ways


def settle(layer: list[Spot], *, upwards: bool) -> None:
    """Move the spots of a layer to the middle of their neighbours below, or above, and apart from each other."""

    def wish(spot: Spot) -> float:
        near = spot.below if upwards else spot.above
        return fmean(other.x for other in near) if near else spot.x

    layer.sort(key=wish)
    blocks: list[tuple[list[Spot], float]] = []  # spots that touch, and where the first of them stands
    for spot in layer:
        own, start = [spot], wish(spot)
        while blocks and start < blocks[-1][1] + span(blocks[-1][0]) + apart(blocks[-1][0][-1], own[0]):
            own = blocks.pop()[0] + own
            offsets = [span(own[: i + 1]) for i in range(len(own))]
            start = fmean(wish(one) - offset for one, offset in zip(own, offsets, strict=True))
        blocks.append((own, start))
    for own, start in blocks:
        for i, spot in enumerate(own):
            spot.x = start + span(own[: i + 1])


def apart(one: Spot, other: Spot) -> float:
    """The distance between the middles of neighbours."""
    return (one.width + other.width) / 2 + GAP


def span(spots: list[Spot]) -> float:
    """From the middle of the first to the middle of the last of spots that touch."""
    return sum(apart(one, other) for one, other in pairwise(spots))


def drawn() -> str:
    """The picture as SVG."""
    layers, ways = arranged(reduced(imports()))
    level = {id(spot): PAD + ROW * (len(layers) - 1 - n) for n, layer in enumerate(layers) for spot in layer}
    width = max(spot.x + spot.width / 2 for layer in layers for spot in layer) + PAD
    height = 2 * PAD + ROW * (len(layers) - 1) + BOX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}">',
        "<title>The places of torchaca and their imports</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height}" style="stroke: none; fill: #ffffff"/>',
    ]
    for way in ways:
        x, y = way[0].x, level[id(way[0])] + BOX
        path = f"M{x:.0f} {y}"
        for upper, lower in pairwise(way):
            top, end = level[id(upper)] + BOX, level[id(lower)]
            middle = (top + end) / 2
            path += f" L{upper.x:.0f} {top} C{upper.x:.0f} {middle:.0f} {lower.x:.0f} {middle:.0f} {lower.x:.0f} {end}"
        parts.append(f'<path d="{path}"/>')
    for spot in (spot for layer in layers for spot in layer if spot.title):
        y = level[id(spot)]
        kind = ' class="folder"' if spot.folder else ""
        parts.append(
            f'<rect{kind} x="{spot.x - spot.width / 2:.0f}" y="{y}" width="{spot.width:.0f}" height="{BOX}" rx="5"/>'
        )
        parts.append(f'<text x="{spot.x:.0f}" y="{y + BOX // 2 + 5}">{escape(spot.title)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn())
