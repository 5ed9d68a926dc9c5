"""The built-in data set: frozen, reproducible, and ambiguous exactly where it says so."""

from __future__ import annotations

import hashlib
import pickle
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from grcn.catalog import SHAPES_CLASSES
from grcn.data.synthetic import dataset as shapes
from grcn.data.synthetic import painting as shapes_draw
from grcn.data.synthetic import scenes as shapes_layout
from grcn.data.synthetic.dataset import ShapesImages, load
from grcn.data.synthetic.scenes import Scene
from grcn.errors import DataError

LEVELS = tuple(SHAPES_CLASSES)
RANGES = {"flat": (12, 64, 0.66), "full": (10, 80, 0.49)}  # long side; least short : long
OUTLINES = ("oval", "triangle", "square", "trapezoid", "cross", "star", "sun", "crescent")

# Results refer to these images. Drawing rounds to integers before anything in which machines or
# library versions could differ, so the hashes are of exact bytes. If one differs, do not paste the
# new value: the data have changed, and the change needs its own level.
HASHES = {
    ("flat", "train"): "461912a83615a9abe78c14d22732a033aee8fb519f5e1213e636c283ae256141",
    ("flat", "val"): "5f25d23bb3e7697eff7ad83b9f1f891d0538d41744b1044f5f2c8dfe18ce92a3",
    ("flat", "test"): "272f4195a252542ae42e365ccafa9861ef6f60f3d2ffdc440dae35dab5fb89b8",
    ("full", "train"): "a69559c0fa1d4379b9581736f60ec3d76d89d66ee2151ff3a99c5198c8b10d95",
    ("full", "val"): "3f7a5b8f562904d5ce92cd1e1f3bd66a8fbddd49a60ba6d1d177508c74f9cc0c",
    ("full", "test"): "86e6a25caa3b03b5987f330f956e06beee8c4d14f5ec4811a032a002e99ccd27",
}


def content_hash(level: str, split: str, count: int = 8) -> str:
    table, images = load(level, split, count, 128, 0), ShapesImages(level, split, 128, 0)
    digest = hashlib.sha256()
    for array in (table.offsets, table.boxes, table.labels):
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    for row in range(count):
        digest.update(images(row).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", shapes.SPLITS)
def test_frozen(level: str, split: str) -> None:
    assert content_hash(level, split) == HASHES[level, split]


def test_same_in_another_process_and_in_any_order() -> None:
    images = ShapesImages("full", "train", 96, 5)
    backwards = {row: images(row) for row in reversed(range(6))}
    code = (
        "import hashlib, pickle, sys\n"
        "images = pickle.load(sys.stdin.buffer)\n"
        "print(*(hashlib.sha256(images(r).numpy().tobytes()).hexdigest() for r in range(6)))"
    )
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, input=pickle.dumps(images), capture_output=True, check=True)
    here = [hashlib.sha256(backwards[row].numpy().tobytes()).hexdigest() for row in range(6)]
    assert there.stdout.decode().split() == here


@pytest.mark.parametrize("level", LEVELS)
def test_row_does_not_depend_on_count(level: str) -> None:
    few, many = load(level, "train", 20, 128, 3), load(level, "train", 50, 128, 3)
    assert np.array_equal(few.offsets, many.offsets[:21])
    assert np.array_equal(few.boxes, many.boxes[: len(few.boxes)])
    assert np.array_equal(few.labels, many.labels[: len(few.labels)])


@pytest.mark.parametrize("level", LEVELS)
def test_splits_and_seeds_share_no_image(level: str) -> None:
    sources = [("train", 0), ("val", 0), ("test", 0), ("train", 1)]
    scenes = [repr(ShapesImages(level, split, 128, seed).scene(row)) for split, seed in sources for row in range(500)]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.parametrize("level", LEVELS)
def test_table(level: str) -> None:
    table, (low, high, slimmest) = load(level, "train", 2000, 128, 0), RANGES[level]
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    counts, labels = np.diff(table.offsets), np.bincount(table.labels)[1:]
    assert table.classes == SHAPES_CLASSES[level] and len(table) == 2000
    assert np.array_equal(table.image_ids, np.arange(2000)) and (table.sizes == 128).all()
    assert table.boxes.min() >= 1 and table.boxes.max() <= 127
    assert sides.min() >= 8 and sides.max() <= high and sides.max(axis=1).min() >= low
    assert sides.max() > 0.98 * high and sides.max(axis=1).min() < 1.02 * low
    assert (sides.min(axis=1) / sides.max(axis=1)).min() >= slimmest
    assert len(np.unique(table.boxes % 1)) == 16  # edges at sixteenths of a pixel
    assert set(counts) == set(range(1, 7)) and np.bincount(counts)[1:].min() > 250
    assert labels.max() < 1.35 * labels.min()
    assert not table.difficult.any() and not table.iscrowd.any()


@pytest.mark.parametrize("level", LEVELS)
def test_objects_stay_visible(level: str) -> None:
    images = ShapesImages(level, "train", 128, 0)
    y, x = np.mgrid[0:128:0.5, 0:128:0.5]
    most_hidden = 0.0
    for row in range(400):
        boxes = [box for _, box in images.scene(row).objects]
        within = [(x >= b[0]) & (x < b[2]) & (y >= b[1]) & (y < b[3]) for b in boxes]
        for index, own in enumerate(within[:-1]):
            under = own & np.any(within[index + 1 :], axis=0)
            most_hidden = max(most_hidden, under.sum() / own.sum())
    assert 0.35 < most_hidden < 0.42


def test_every_scene_of_full_has_its_context() -> None:
    images = ShapesImages("full", "train", 128, 0)
    for row in range(2000):
        scene = images.scene(row)
        names = [name for name, _ in scene.objects]
        assert len(scene.patches) == 2
        assert len({"sun", "moon"} & set(names)) == 1 and len({"sun", "moon"} - set(names)) == 1
        assert sum(name in ("sun", "moon") for name in names) == 1 and names[0] in ("sun", "moon")
        assert not {"lark" if names[0] == "moon" else "owl"} & set(names)
        assert not {"boat" if scene.ground == "checks" else "cart"} & set(names)
        for name, box in scene.objects:
            deciders = []
            if name in ("lark", "owl"):
                deciders = [scene.objects[0][1]]
            elif name in ("boat", "cart"):
                deciders = scene.patches
            for other in deciders:
                grown = np.array(box) + [-14, -14, 14, 14]
                apart = [grown[0] >= other[2], other[0] >= grown[2]]
                apart += [grown[1] >= other[3], other[1] >= grown[3]]
                assert any(apart)


def test_coins_do_not_move_anything() -> None:
    """Of four scenes that differ only in their two coins, all boxes and looks are the same."""

    def scene(seed: int, day: bool, waves: bool) -> Scene:
        coins = [0.0 if heads else 0.9 for heads in (day, waves)]
        rest = random.Random(seed).random
        return shapes_layout.full_scene(lambda: coins.pop(0) if coins else rest(), 1.0)

    other_name = {"lark": "owl", "sun": "moon", "boat": "cart"}
    for seed in range(200):
        day_waves, night_gravel = scene(seed, True, True), scene(seed, False, False)
        expected = [(other_name.get(name, name), box) for name, box in day_waves.objects]
        assert night_gravel == ("checks", day_waves.patches, expected)
        assert scene(seed, True, False).patches == day_waves.patches


@pytest.mark.parametrize(
    ("swaps", "deciders"),
    [
        ({"sun": "moon", "moon": "sun", "lark": "owl", "owl": "lark"}, "companion"),
        ({"bars": "checks", "checks": "bars", "boat": "cart", "cart": "boat"}, "patches"),
    ],
)
def test_pairs_differ_only_where_the_scene_decides(swaps: dict[str, str], deciders: str) -> None:
    """Turning a coin in a drawn image changes no pixel outside the companion, or the patches."""

    class Turned(ShapesImages):
        def scene(self, row: int) -> Scene:
            scene = super().scene(row)
            objects = [(swaps.get(name, name), box) for name, box in scene.objects]
            return Scene(swaps.get(scene.ground, scene.ground), scene.patches, objects)

    for row in range(40):
        images, turned = (kind("full", "train", 128, 0) for kind in (ShapesImages, Turned))
        changed = (images(row) != turned(row)).any(dim=0).numpy()
        assert changed.any()
        scene = images.scene(row)
        for box in [scene.objects[0][1]] if deciders == "companion" else scene.patches:
            left, top = np.floor(box[:2]).astype(int)
            right, bottom = np.ceil(box[2:]).astype(int)
            changed[top:bottom, left:right] = False
        assert not changed.any()


def test_first_order_statistics_do_not_give_the_scene_away() -> None:
    """A turned coin changes the mean colour of the image by little and to no side."""
    images = ShapesImages("full", "train", 64, 0)
    coins, means = [], []
    for row in range(300):
        scene = images.scene(row)
        coins.append([scene.objects[0][0] == "sun", scene.ground == "bars"])
        means.append(images(row).float().mean(dim=(1, 2)).numpy())
    heads, colours = np.array(coins, bool), np.array(means)
    colours -= colours.mean(axis=1, keepdims=True)  # lightness apart, which varies more
    for coin in heads.T:
        gap = abs(colours[coin].mean(axis=0) - colours[~coin].mean(axis=0))
        assert (gap < 3 * colours.std(axis=0) * 2 / 300**0.5).all()


@pytest.mark.parametrize("shape", OUTLINES)
def test_drawn_extents_equal_the_box(shape: str) -> None:
    """Drawn alone on a canvas, the pixels that an object touches are those that its box touches.

    The canvas is eight times finer, so that equality to one of its pixels is equality to 1/8 px.
    """
    draw = random.Random(1).random
    for turn in range(0, 240, 7):
        width, height = shapes_draw.between(draw, 8, 80), shapes_draw.between(draw, 8, 80)
        x, y = shapes_draw.between(draw, 0, 128 - width), shapes_draw.between(draw, 0, 128 - height)
        box = (x, y, x + width, y + height)
        canvas = np.zeros((3, 1024, 1024), np.int32)
        corners = shapes_draw.fit(shape, turn, box)
        shapes_draw.paint(canvas, corners * 8, shapes_draw.Surface((255, 255, 255)), draw)
        rows, columns = np.flatnonzero(canvas[0].any(axis=1)), np.flatnonzero(canvas[0].any(axis=0))
        extents = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 8
        np.testing.assert_allclose(extents, box, rtol=0, atol=0.125)


@pytest.mark.parametrize("shape", OUTLINES)
def test_coverage_equals_pillow(shape: str) -> None:
    """Pillow's polygon on a 16 times finer canvas, averaged, covers the same."""
    draw = random.Random(2).random
    for turn in range(0, 240, 31):
        # Sticks out on the left and at the bottom, so clipping is compared as well.
        box = (-6.3, 20.6, 30 + 20 * draw(), 45 + 40 * draw())
        corners = shapes_draw.fit(shape, turn, box)
        rows, columns, covered = shapes_draw.coverage(corners, 64)
        ours = np.zeros((64, 64))
        ours[rows, columns] = covered / shapes_draw.FULL
        picture = Image.new("L", (64 * 16, 64 * 16))
        # Pillow takes a coordinate for the middle of a pixel.
        ImageDraw.Draw(picture).polygon([(a * 16 - 0.5, b * 16 - 0.5) for a, b in corners], fill=1)
        theirs = np.asarray(picture, float).reshape(64, 16, 64, 16).mean(axis=(1, 3))
        assert abs(ours - theirs).max() < 0.2
        assert abs(ours - theirs).mean() < 0.004


@pytest.mark.parametrize("pattern", ["bars", "checks"])
def test_patterns(pattern: str) -> None:
    """Each covers one half and repeats along its own axes; only bars do not vary along one."""
    window, period = slice(0, 160), 8.0
    phase = (0.2, 0.7)
    straight = shapes_draw.swing(pattern, window, window, period, 0, phase)
    turned = shapes_draw.swing(pattern, window, window, period, 60, phase)
    oblique = shapes_draw.swing(pattern, window, window, period, 13, phase)
    assert (oblique > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert oblique.min() == -64 and oblique.max() == 64
    assert np.array_equal(straight[:, 8:], straight[:, :-8])
    assert (np.ptp(straight, axis=0) == 0).all() == (pattern == "bars")
    assert (np.ptp(turned, axis=1) == 0).all() == (pattern == "bars")


@pytest.mark.parametrize("shape", OUTLINES)
def test_mirroring_keeps_the_class(shape: str) -> None:
    """A flipped turned outline is the same outline, turned the other way."""

    def drawn(turn: int) -> np.ndarray:
        corners = shapes_draw.fit(shape, turn, (2.0, 2.0, 62.0, 62.0))
        rows, columns, covered = shapes_draw.coverage(corners, 64)
        image = np.zeros((64, 64))
        image[rows, columns] = covered
        return image

    for turn in range(0, 240, 17):
        difference = abs(drawn(turn)[:, ::-1] - drawn(-turn % shapes_draw.NUM_DIRECTIONS))
        assert difference.max() <= 2 * shapes_draw.SUB_ROWS


def test_sizes_show_the_same_scene() -> None:
    for level in LEVELS:
        small, large = (load(level, "val", 30, size, 0) for size in (64, 192))
        np.testing.assert_allclose(large.boxes, small.boxes * 3)
        images = [ShapesImages(level, "val", size, 0)(3) for size in (64, 192)]
        assert [tuple(image.shape) for image in images] == [(3, 64, 64), (3, 192, 192)]
        shrunk = images[1].reshape(3, 64, 3, 64, 3).float().mean(dim=(2, 4))
        assert np.corrcoef(shrunk.flatten(), images[0].float().flatten())[0, 1] > 0.9


def test_images_vary() -> None:
    images = [ShapesImages("full", "train", 96, 0)(row).float() for row in range(40)]
    means = [float(image.mean()) for image in images]
    grain = [float((image[:, :, 1:] - image[:, :, :-1]).abs().median()) for image in images]
    assert np.std(means) > 10 and min(means) > 50 and max(means) < 200
    assert min(grain) <= 1 and max(grain) >= 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("hard", "train", 1, 128, 0), "unknown level (got 'hard')"),
        (lambda: load("flat", "valid", 1, 128, 0), "unknown split (got 'valid')"),
        (lambda: load("flat", "train", 0, 128, 0), "too few images (got count 0)"),
        (lambda: ShapesImages("flat", "train", 16, 0), "images too small (got size 16)"),
    ],
)
def test_mistakes(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert message in str(caught.value)
