"""Paints outlines, textures, light and grain in integers, for :mod:`grcn.data.synthetic.dataset`.

Frame: pixel ``(row, column)`` is the square ``[column, column + 1] x [row, row + 1]``; ``x`` runs
right, ``y`` down. A canvas is int32 ``[3, size, size]`` holding 0..255.

The data set is frozen, so its pixels must be the same on every machine and with every version of
every library. Hence fixed point: outlines are rounded to a grid of 8 sub-rows by 32 sub-columns per
pixel, textures and colours to levels, and all that follows is integer arithmetic. The few
floating-point steps before use only ``+ - * /``, which IEEE 754 rounds alike everywhere; directions
come from a table of rounded cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from grcn import rng

Draw = Callable[[], float]  # the next random number in [0, 1)
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Colour = tuple[int, int, int]  # red, green, blue

NUM_DIRECTIONS = 240
SUB_ROWS, SUB_COLUMNS = 8, 32
FULL = SUB_ROWS * SUB_COLUMNS  # the coverage of a pixel that lies wholly inside


@dataclass(frozen=True)
class Surface:
    """Fill of an outline: a colour, plus and minus ``amplitude`` as a pattern swings."""

    colour: Colour
    pattern: str = "plain"  # plain | bars | checks
    amplitude: int = 0
    period: float = 1.0  # pixels


def between(draw: Draw, low: float, high: float) -> float:
    """Draws a number in ``[low, high)``."""
    return low + (high - low) * draw()


def draw_int(draw: Draw, low: int, high: int) -> int:
    """Draws an integer in ``[low, high]``."""
    return low + int((high - low + 1) * draw())


def draw_turn(draw: Draw) -> int:
    """Draws one of the 240 directions."""
    return draw_int(draw, 0, NUM_DIRECTIONS - 1)


def draw_lean(draw: Draw) -> int:
    """Draws a direction within 22 degrees of upright, to either side."""
    return draw_int(draw, -15, 15) % NUM_DIRECTIONS


@cache
def directions() -> np.ndarray:
    """Returns unit vectors around the circle: float64 ``[240, 2]``.

    Rounding to 2**-20 hides differences between the cosines of different machines.
    """
    angles = [math.tau * k / NUM_DIRECTIONS for k in range(NUM_DIRECTIONS)]
    rounded = [[round(math.cos(a) * 2**20), round(math.sin(a) * 2**20)] for a in angles]
    return np.array(rounded) / 2**20


@cache
def outlines() -> dict[str, np.ndarray]:
    """Returns the corners of every shape, in order around it: float64 ``[V, 2]``, own frame.

    All but the patch are upright and symmetric about their vertical axis.
    """
    circle = np.roll(directions(), NUM_DIRECTIONS // 4, axis=0)  # from the top
    bowl = circle[60:181:4]
    corner = np.array([[0.35, 1.0], [0.35, 0.35], [1.0, 0.35]])
    lobes = [1, 0.72, 0.95, 0.7, 1, 0.8, 0.65, 0.95, 0.75, 1, 0.7, 0.9]
    return {
        "oval": circle[::6],
        "triangle": circle[::80],
        "square": circle[30::60],
        "trapezoid": np.array([[-1.0, -0.7], [1.0, -0.7], [0.5, 0.7], [-0.5, 0.7]]),
        "cross": np.concatenate([corner, corner[::-1] * [1, -1], -corner, corner[::-1] * [-1, 1]]),
        "star": _rays(circle, 5, inner=0.45),
        "sun": _rays(circle, 8, inner=0.6),
        "crescent": np.concatenate([bowl, bowl[::-1] * [0.85, 0.32]]),
        "patch": circle[::20] * np.array(lobes)[:, None],
    }


def _rays(circle: np.ndarray, count: int, inner: float) -> np.ndarray:
    corners = circle[:: NUM_DIRECTIONS // (2 * count)].copy()
    corners[1::2] *= inner
    return corners


def fit(shape: str, turn: int, box: Box) -> np.ndarray:
    """Turns a shape by one of the 240 directions and stretches it to the tight extents ``box``.

    Returns:
        Corners in the box's frame, float64 ``[V, 2]``; the outline touches all four sides.
    """
    corners, (cos, sin) = outlines()[shape], directions()[turn]
    x = corners[:, 0] * cos - corners[:, 1] * sin
    y = corners[:, 0] * sin + corners[:, 1] * cos
    x = box[0] + (x - x.min()) / (x.max() - x.min()) * (box[2] - box[0])
    y = box[1] + (y - y.min()) / (y.max() - y.min()) * (box[3] - box[1])
    return np.stack([x, y], axis=1)


def rod(centre: tuple[float, float], length: float, width: float, turn: int) -> np.ndarray:
    """Returns the corners of a turned rectangle: float64 ``[4, 2]``."""
    along = directions()[turn] * (length / 2)
    across = along[::-1] * [-width / length, width / length]
    return np.array(centre) + [along + across, along - across, -along - across, across - along]


def coverage(corners: np.ndarray, size: int) -> tuple[slice, slice, np.ndarray]:
    """Measures how much of each pixel an outline covers, clipped to the image.

    The outline cuts each sub-row at some positions. A cut at ``x`` covers all that lies right of
    ``x``, with the sign of the edge's direction, so coverage is the running sum of signed cuts.

    Args:
        corners: ``[V, 2]``, in order around an outline that does not cross itself.
        size: the image's height and width.

    Returns:
        Rows and columns of the window that the outline touches, and its coverage in 0..256, int32.
    """
    left, top = (min(max(math.floor(v), 0), size) for v in corners.min(axis=0))
    right, bottom = (min(max(math.ceil(v), 0), size) for v in corners.max(axis=0))
    width, height = right - left, bottom - top
    x, y = corners[:, 0] - left, corners[:, 1] - top
    after = np.arange(1, len(x) + 1) % len(x)
    centres = (np.arange(height * SUB_ROWS) + 0.5) / SUB_ROWS
    above = y <= centres[:, None]
    rows, edges = np.nonzero(above != above[:, after])
    x, y, dx, dy = x[edges], y[edges], (x[after] - x)[edges], (y[after] - y)[edges]
    cuts = np.floor((x + (centres[rows] - y) * dx / dy) * SUB_COLUMNS + 0.5).astype(np.int64)
    cuts = np.minimum(np.maximum(cuts, 0), width * SUB_COLUMNS)
    signs = np.where(dy > 0, 1, -1)
    inside, stride = cuts % SUB_COLUMNS, width + 2
    places = rows // SUB_ROWS * stride + cuts // SUB_COLUMNS
    steps = np.bincount(places, signs * (SUB_COLUMNS - inside), minlength=height * stride)
    steps += np.bincount(places + 1, signs * inside, minlength=height * stride)
    covered = np.abs(np.cumsum(steps.reshape(height, stride), axis=1)[:, :width])
    return slice(top, bottom), slice(left, right), covered.astype(np.int32)


def swing(
    pattern: str, rows: slice, columns: slice, period: float, turn: int, phase: tuple[float, float]
) -> np.ndarray:
    """Evaluates a pattern at the centres of a window's pixels: int32 ``[rows, columns]``, ±64."""
    cos, sin = directions()[turn] / period
    x = np.arange(columns.start, columns.stop) + 0.5
    y = np.arange(rows.start, rows.stop)[:, None] + 0.5
    u = _wave(x * cos + y * sin + phase[0])
    if pattern == "bars":
        value = 2 * u
    else:  # checks
        value = 4 * u * _wave(y * cos - x * sin + phase[1])
    value = np.minimum(np.maximum(value, -1), 1)
    return np.floor(value * 64 + 0.5).astype(np.int32)


def _wave(t: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between -1 and 1."""
    return np.abs(t - np.floor(t) - 0.5) * 4 - 1


def paint(canvas: np.ndarray, corners: np.ndarray, surface: Surface, draw: Draw) -> None:
    """Fills an outline on the canvas; the pattern's lean and phase are drawn."""
    rows, columns, covered = coverage(corners, canvas.shape[1])
    colour = np.array(surface.colour, np.int32)[:, None, None]
    lean, phase = draw_lean(draw), (draw(), draw())
    if surface.pattern != "plain":
        pattern = swing(surface.pattern, rows, columns, surface.period, lean, phase)
        colour = colour + (surface.amplitude * pattern >> 6)
    window = canvas[:, rows, columns]
    window += (np.clip(colour, 0, 255) - window) * covered + FULL // 2 >> 8


def light(canvas: np.ndarray, brightness: float, slope: tuple[float, float]) -> None:
    """Multiplies the canvas by ``brightness``, rising by ``slope`` (right, down) across it."""
    size = canvas.shape[1]
    place = (np.arange(size) + 0.5) / size - 0.5
    gain = brightness + slope[0] * place + slope[1] * place[:, None]
    canvas *= np.floor(gain * 256).astype(np.int32)
    canvas >>= 8


def grain(canvas: np.ndarray, level: int, key: int) -> None:
    """Adds noise of standard deviation ``0.41 * level``, hashed from ``key`` and the pixel."""
    size = canvas.shape[1]
    hashes = rng.hash_tensor(key, torch.arange(size * size)).numpy().astype("<i8", copy=False)
    # Two of a hash's bytes per channel: their sum has a triangular distribution around 255.
    pairs = hashes.view(np.uint8).reshape(size, size, 8)[..., :6].astype(np.int32)
    noise = (pairs[..., :3] + pairs[..., 3:] - 255) * level >> 8
    canvas += noise.transpose(2, 0, 1)
