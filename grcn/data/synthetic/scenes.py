"""Lays out the scenes of :mod:`grcn.data.synthetic.dataset`: the objects and their boxes.

Everything is placed in a frame of 128 x 128 pixels, from back to front, and scaled to the image at
the end, so an image of another size shows the same scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grcn.catalog import SHAPES_CLASSES
from grcn.data.synthetic.painting import Box, Draw, between, draw_int

FRAME = 128.0  # pixels; the lengths below refer to it
MARGIN = 1.0  # pixels between a box and the image's edge
SHORTEST = 8.0  # pixels; the minimum side of a box
MAX_HIDDEN = 0.4  # of a box, by the boxes drawn after it
CLEARANCE = 14.0  # pixels between a box and the cue that decides its class


class Scene(NamedTuple):
    """Positions of everything, in pixels of the image.

    Attributes:
        ground: the pattern of the patches, ``bars`` or ``checks``.
        patches: boxes of the patches of ground; none in ``flat``.
        objects: class name and box of each object; later ones hide earlier ones.
    """

    ground: str
    patches: list[Box]
    objects: list[tuple[str, Box]]


class _Sizes(NamedTuple):
    """Long sides in ``low .. high``, the smaller ones more often; short sides from ``slimmest``."""

    low: float
    high: float
    slimmest: float  # of the long side


class _Layout:
    """Boxes in the frame, placed one above the other."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []
        self.hidden: list[float] = []  # share of each box under later ones, if those lie apart

    def place(self, draw: Draw, sizes: _Sizes, far_from: Sequence[Box] = ()) -> bool:
        """Adds a box that hides no other too much and keeps clear of some; gives up after many attempts."""
        for attempt in range(48):
            if attempt % 8 == 0:  # a new size only after several places, or small ones would win
                width, height = _draw_sides(draw, sizes)
            x = _snap(between(draw, MARGIN, FRAME - MARGIN - width))
            y = _snap(between(draw, MARGIN, FRAME - MARGIN - height))
            box = (x, y, x + width, y + height)
            hidden = [h + _hides(box, b) for h, b in zip(self.hidden, self.boxes, strict=True)]
            clear = all(_gap(box, other) >= CLEARANCE for other in far_from)
            if clear and max(hidden, default=0) <= MAX_HIDDEN:
                self.boxes.append(box)
                self.hidden = [*hidden, 0.0]
                return True
        return False

    def scaled(self, scale: float) -> list[Box]:
        return [(a * scale, b * scale, c * scale, d * scale) for a, b, c, d in self.boxes]


def _draw_sides(draw: Draw, sizes: _Sizes) -> tuple[float, float]:
    u = draw()
    long = _snap(sizes.low + (sizes.high - sizes.low) * u * (1 + u) / 2)
    short = max(_snap(long * between(draw, sizes.slimmest, 1)), SHORTEST)
    return (long, short) if draw() < 0.5 else (short, long)


def _snap(length: float) -> float:
    return round(length * 16) / 16


def _hides(upper: Box, lower: Box) -> float:
    """The share of the lower box that the upper one covers."""
    width = min(upper[2], lower[2]) - max(upper[0], lower[0])
    height = min(upper[3], lower[3]) - max(upper[1], lower[1])
    area = (lower[2] - lower[0]) * (lower[3] - lower[1])
    return max(width, 0) * max(height, 0) / area


def _gap(a: Box, b: Box) -> float:
    """The wider of the horizontal and the vertical distance between two boxes."""
    return max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])


def flat_scene(draw: Draw, scale: float) -> Scene:
    layout, names = _Layout(), []
    for _ in range(draw_int(draw, 1, 6)):
        name = SHAPES_CLASSES["flat"][draw_int(draw, 0, 5)]
        if layout.place(draw, _Sizes(12, 64, slimmest=0.7)):
            names.append(name)
    return Scene("plain", [], list(zip(names, layout.scaled(scale), strict=True)))


def full_scene(draw: Draw, scale: float) -> Scene:
    day, waves = draw() < 0.5, draw() < 0.5
    layout = _Layout()
    # The first places in an empty frame never fail: two patches, then the companion.
    for _ in range(2):
        layout.place(draw, _Sizes(16, 30, slimmest=0.7))
    layout.place(draw, _Sizes(14, 44, slimmest=0.7))
    patches, companion = layout.boxes[:2], layout.boxes[2:]
    names = ["sun" if day else "moon"]
    bird, vehicle = "lark" if day else "owl", "boat" if waves else "cart"
    deciders: dict[str, Sequence[Box]] = {bird: companion, vehicle: patches}
    # Looks that represent two classes come twice as often.
    kinds = (bird, bird, vehicle, vehicle, "beetle", "crate")
    for _ in range(draw_int(draw, 0, 5)):
        name = kinds[draw_int(draw, 0, 5)]
        if layout.place(draw, _Sizes(10, 80, slimmest=0.5), deciders.get(name, ())):
            names.append(name)
    boxes = layout.scaled(scale)
    return Scene("bars" if waves else "checks", boxes[:2], list(zip(names, boxes[2:], strict=True)))
