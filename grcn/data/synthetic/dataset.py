"""The built-in data set: images drawn on the fly, pure functions of (level, split, seed, row).

There are no files. :func:`load` lays out the boxes and :class:`ShapesImages` draws the pixels of
the same scenes, alike on every machine. Lengths here are for images of 128 x 128 pixels; others
show the same scenes, scaled. A box is the tight extent of the whole outline, also where something
hides part of it, and outlines lie inside the image. An image has 1 to 6 objects; at most 40 % of a
box is covered by the boxes drawn after it. Flipping an image changes no class.

Level ``flat``: six outlines, 12 to 64 px long, each in its own plain colour, on plain ground.
Quick to learn; for demos.

Level ``full``: made to give the claims of the paper (G-RCN, arXiv 2012.03677) a fair trial.

- *Localization wants a small stride.* Edges lie at sixteenths of a pixel. Long sides run from 10
  to 80 px, short ones from 8, aspect ratios from 1:2 to 2:1, so a box is more than a centre.
- *Classification wants depth and receptive field.* Four looks are the products of two outlines
  (oval, trapezoid) and two textures (checks, bars), so neither alone decides the class. The texture
  leans at random and grows with the object, from periods of 4.5 px: on a small object it takes fine
  detail, on a large one a large receptive field. The colours of these looks are random, and
  unlabelled triangles carry the same textures.
- *Classification wants global context.* Two looks belong to two classes each, and only the scene
  decides which. The oval with checks is a ``lark`` where there is a ``sun`` and an ``owl`` where
  there is a ``moon``; every image has exactly one of these companions. The trapezoid with checks is
  a ``boat`` where two patches of the ground show waves (bars) and a ``cart`` where they show paving
  (checks). Both coins are tossed, fairly, before all else and govern nothing else, so without the
  surroundings nobody is right more than half of the time. The deciding cue keeps at least 14 px away
  from the box that it decides and lies anywhere else: half of the companions more than 32 px away,
  half of the nearer patches more than 26 px. A wider receptive field sees some of them, a look at
  the whole image sees all. Companions are yellow and patches green, so they are easy to find, but
  only their form distinguishes them: sun and moon have the same colour and area, waves and paving
  the same mean and nearly the same contrast. And they are small, 2 and 3 % of the image: a large
  difference would shift the statistics of the whole image, which normalisation layers such as
  GroupNorm spread to every position, and a detector without context would be right all the same.
- *The tasks differ.* Context does not help to find edges, and edges do not help to tell a lark from
  an owl. Whether one feature map serves both is what the study asks.

Contrast, brightness, the slope of light and noise vary; thin rods cross in front. An image has on
average 0.5 of each companion and 0.4 of each other class. Contrasts were chosen by eye and so that
a small classifier, given the true boxes, learns the looks and reads the coins; no result of any
detector went into them.

Frozen: results refer to these images, and a test pins their hashes. A change that alters one pixel
or box is a new level with a new name.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from grcn import rng
from grcn.catalog import SHAPES_CLASSES
from grcn.data.annotations import Annotations
from grcn.data.synthetic.painting import (
    Box,
    Colour,
    Draw,
    Surface,
    between,
    draw_int,
    draw_lean,
    draw_turn,
    fit,
    grain,
    light,
    paint,
    rod,
)
from grcn.data.synthetic.scenes import FRAME, Scene, flat_scene, full_scene
from grcn.data.validate import pack
from grcn.errors import DataError

SPLITS = ("train", "val", "test")  # the order is part of the data

# The outline and the texture of each class of `full`: a lark looks like an owl, a boat like a cart.
LOOKS = {
    "sun": ("sun", "plain"),
    "moon": ("crescent", "plain"),
    "lark": ("oval", "checks"),
    "owl": ("oval", "checks"),
    "boat": ("trapezoid", "checks"),
    "cart": ("trapezoid", "checks"),
    "beetle": ("oval", "bars"),
    "crate": ("trapezoid", "bars"),
}
# The amounts that red, green and blue add to the lightness, where a colour helps.
HUES = {
    "disc": (80, -55, -55),
    "square": (-55, 50, -55),
    "triangle": (-60, -40, 80),
    "star": (90, 70, -60),
    "cross": (60, -60, 70),
    "crescent": (-60, 65, 75),
    "sun": (36, 20, -44),
    "moon": (36, 20, -44),
    "patch": (-26, 26, 0),
}
FINEST_PERIOD = 4.5  # pixels of a 128 px image; the minimum period of a texture


def load(level: str, split: str, count: int, size: int, seed: int) -> Annotations:
    """Lays out the first ``count`` images of a split; image ``i`` does not depend on ``count``.

    Args:
        level: ``flat`` or ``full``.
        split: ``train``, ``val`` or ``test``; no image is shared between them.
        count: number of images.
        size: height and width of the images in pixels.
        seed: which of the endless data sets of this level.

    Raises:
        DataError: an unknown level or split, no images, or images too small to show anything.
    """
    if count < 1:
        raise DataError(f"shapes: too few images (got count {count}); ask for at least 1")
    read_image = ShapesImages(level, split, size, seed)
    classes = SHAPES_CLASSES[level]
    objects = [(row, *found) for row in range(count) for found in read_image.scene(row).objects]
    return pack(
        f"shapes-{level}/{split}",
        classes,
        image_ids=range(count),
        sizes=np.full((count, 2), size),
        rows=[row for row, _, _ in objects],
        boxes=[box for _, _, box in objects],
        labels=[classes.index(name) + 1 for _, name, _ in objects],
    )


class ShapesImages:
    """Draws images by row: ``images(row)`` is a uint8 tensor ``[3, size, size]``.

    The arguments are those of :func:`load`; it stores nothing else, so copies for workers are cheap.
    """

    def __init__(self, level: str, split: str, size: int, seed: int) -> None:
        if level not in SHAPES_CLASSES:
            raise DataError(f"shapes: unknown level (got {level!r}); use one of {list(SHAPES_CLASSES)}")
        if split not in SPLITS:
            raise DataError(f"shapes: unknown split (got {split!r}); use one of {list(SPLITS)}")
        if size < 32:
            raise DataError(f"shapes: images too small (got size {size}); use at least 32 pixels")
        self.level, self.split, self.size, self.seed = level, split, size, seed

    def __call__(self, row: int) -> Tensor:
        scene = self.scene(row)
        draw = random.Random(self._key(row, 1)).random
        canvas = np.zeros((3, self.size, self.size), np.int32)
        if self.level == "flat":
            _paint_flat(canvas, scene, draw)
        else:
            _paint_full(canvas, scene, draw)
            grain(canvas, draw_int(draw, 0, 16), self._key(row, 2))
        return torch.from_numpy(np.clip(canvas, 0, 255).astype(np.uint8))

    def scene(self, row: int) -> Scene:
        """Lays out an image without drawing it."""
        # Python promises that random(), seeded with an integer, stays the same in all versions.
        draw = random.Random(self._key(row, 0)).random
        layout = flat_scene if self.level == "flat" else full_scene
        return layout(draw, self.size / FRAME)

    def _key(self, row: int, purpose: int) -> int:
        level, split = list(SHAPES_CLASSES).index(self.level), SPLITS.index(self.split)
        return rng.hash_int(self.seed, rng.SHAPES, level, split, row, purpose)


def _paint_flat(canvas: np.ndarray, scene: Scene, draw: Draw) -> None:
    canvas[:] = np.array(_colour(draw, between(draw, 110, 145), 10))[:, None, None]
    for name, box in scene.objects:
        shape = "oval" if name == "disc" else name
        surface = Surface(_colour(draw, 128 + between(draw, -20, 20), 15, HUES[name]))
        paint(canvas, fit(shape, draw_lean(draw), box), surface, draw)


def _paint_full(canvas: np.ndarray, scene: Scene, draw: Draw) -> None:
    """Paints from back to front: ground, patches, triangles, objects, rods; then the light."""
    size = canvas.shape[1]
    scale = size / FRAME
    lightness = between(draw, 110, 140)
    canvas[:] = np.array(_colour(draw, lightness, 12))[:, None, None]
    amplitude, period = draw_int(draw, 28, 42), between(draw, 6, 9) * scale
    for box in scene.patches:
        colour = _colour(draw, lightness, 8, HUES["patch"])
        surface = Surface(colour, scene.ground, amplitude, period)
        paint(canvas, fit("patch", draw_turn(draw), box), surface, draw)
    for _ in range(draw_int(draw, 1, 4)):
        box = _draw_anywhere(draw, scale)
        pattern = ("plain", "bars", "checks")[draw_int(draw, 0, 2)]
        surface = _material(draw, lightness, pattern, _draw_period(draw, box, scale))
        paint(canvas, fit("triangle", draw_turn(draw), box), surface, draw)
    for name, box in scene.objects:
        shape, pattern = LOOKS[name]
        period, hue = _draw_period(draw, box, scale), HUES.get(name, (0, 0, 0))
        surface = _material(draw, lightness, pattern, period, hue)
        paint(canvas, fit(shape, draw_lean(draw), box), surface, draw)
    for _ in range(draw_int(draw, 0, 2)):
        centre = between(draw, 0, size), between(draw, 0, size)
        length, width = between(draw, 40, 110) * scale, between(draw, 1.5, 2.5) * scale
        corners = rod(centre, length, width, draw_turn(draw))
        paint(canvas, corners, _material(draw, lightness), draw)
    light(canvas, between(draw, 0.8, 1.1), (between(draw, -0.2, 0.2), between(draw, -0.2, 0.2)))


def _draw_anywhere(draw: Draw, scale: float) -> Box:
    """Draws a box of clutter, which may stick out of the image."""
    width, height = between(draw, 6, 28), between(draw, 6, 28)
    x, y = between(draw, -4, FRAME - 8), between(draw, -4, FRAME - 8)
    return x * scale, y * scale, (x + width) * scale, (y + height) * scale


def _draw_period(draw: Draw, box: Box, scale: float) -> float:
    """Draws the period of a texture that shows 2.5 to 4 times along the short side of a box."""
    short = min(box[2] - box[0], box[3] - box[1])
    return max(short / between(draw, 2.5, 4), FINEST_PERIOD * scale)


def _material(
    draw: Draw,
    lightness: float,
    pattern: str = "plain",
    period: float = 1.0,
    hue: Colour = (0, 0, 0),
) -> Surface:
    """Draws a surface whose every part is, over the channels, lighter or darker than the ground."""
    amplitude = draw_int(draw, 22, 40)
    contrast = (amplitude + between(draw, 12, 45)) * _sign(draw)
    return Surface(_colour(draw, lightness + contrast, 14, hue), pattern, amplitude, period)


def _colour(draw: Draw, lightness: float, spread: int, hue: Colour = (0, 0, 0)) -> Colour:
    red, green, blue = (int(lightness) + h + draw_int(draw, -spread, spread) for h in hue)
    return red, green, blue


def _sign(draw: Draw) -> int:
    return 1 if draw() < 0.5 else -1
