"""Drawn boxes and pictures have the right contents in the right places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from grcn.data.validate import pack
from grcn.vis import boxes as draw

BLUE, VERMILION, GREY = (0, 114, 178), (213, 94, 0), (112, 112, 112)


def pixels(picture, color):
    """Returns where a picture has a colour, bool [H, W]."""
    return (np.asarray(picture) == color).all(axis=2)


def extent(mask):
    """Returns the smallest box around the true pixels, xyxy with the far edge exclusive."""
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.fixture
def image():
    return torch.full((3, 40, 60), 30, dtype=torch.uint8)


@pytest.fixture
def table():
    return pack(
        "made",
        ("cat", "dog"),
        image_ids=["a", "b", "c"],
        files=["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg"],
        sizes=[(40, 60)] * 3,
        rows=[0, 0, 1],
        boxes=[(5, 20, 25, 35), (30, 20, 50, 35), (5, 20, 25, 35)],
        labels=[1, 2, 1],
        difficult=[False, True, False],
    )


def test_a_box_lies_on_its_pixels(image):
    picture = draw.draw_boxes(image, torch.tensor([[10.0, 5.0, 30.0, 25.0]]), color=draw.BLUE)
    assert picture.size == (60, 40)
    assert extent(pixels(picture, BLUE)) == (10, 5, 30, 25)
    assert np.asarray(picture)[15, 20].tolist() == [30, 30, 30]  # not filled
    assert int(image.min()) == int(image.max()) == 30  # the input is left alone


def test_boxes_are_scaled_with_the_picture(image):
    picture = draw.draw_boxes(image, np.array([[10, 5, 30, 25]]), color=draw.BLUE, scale=3)
    assert picture.size == (180, 120)
    assert extent(pixels(picture, BLUE)) == (30, 15, 90, 75)


def test_float_images_look_like_their_uint8_originals(image):
    image = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    none = np.zeros((0, 4))
    assert draw.draw_boxes(image.float() / 255, none) == draw.draw_boxes(image, none)


def test_captions_stay_inside_and_off_each_other():
    image = torch.zeros(3, 200, 200)
    boxes = np.array([[0, 0, 50, 30], [0, 0, 50, 30], [150, 170, 200, 200], [0, 100, 300, 120]])
    colors = ["#0000ff", "#00ff00", "#ff0000", "#ff00ff"]
    plain = draw.draw_boxes(image, boxes, (), colors)
    picture = draw.draw_boxes(image, boxes, ["first", "second", "third", "fourth"], colors)
    for color in ((0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 0, 255)):
        added = pixels(picture, color) & ~pixels(plain, color)
        x1, y1, x2, y2 = extent(added)
        assert y2 - y1 >= 12 and x2 - x1 >= 25  # nothing of the tag is hidden or cut off
        assert added[y1:y2, x1:x2].mean() > 0.5


def test_a_caption_wider_than_its_box_is_not_cut_off():
    image, box = torch.zeros(3, 60, 80), np.array([[38, 30, 42, 40]])
    picture = draw.draw_boxes(image, box, ["quite wide"], draw.BLUE)
    x1, _, x2, _ = extent(pixels(picture, BLUE))
    full = draw.draw_boxes(torch.zeros(3, 60, 400), box + [200, 0, 200, 0], ["quite wide"], draw.BLUE)
    left, _, right, _ = extent(pixels(full, BLUE))
    assert x2 - x1 == right - left


def test_detections_stand_beside_the_ground_truth(image, table):
    detections = {
        "rows": np.array([0, 0, 0, 2]),
        "boxes": np.array([[5, 20, 25, 35], [5, 5, 9, 9], [30, 20, 50, 35], [0, 0, 9, 9]], float),
        "scores": np.array([0.9, 0.2, 0.8, 0.9]),
        "labels": np.array([1, 1, 2, 1]),
    }
    asked = []

    def read_image(row):
        asked.append(row)
        return image

    picture = draw.detection_grid(table, read_image, detections, [0], width=240)
    assert asked == [0]
    objects = draw.draw_boxes(image, table.boxes[:2], ["cat", "dog (difficult)"], [draw.BLUE, draw.GREY], scale=4)
    shown = draw.draw_boxes(image, detections["boxes"][[0, 2]], ["cat 0.90", "dog 0.80"], draw.VERMILION, scale=4)
    bottom = picture.height - 6
    assert picture.crop((6, bottom - 160, 246, bottom)) == objects
    assert picture.crop((252, bottom - 160, 492, bottom)) == shown

    best = draw.draw_boxes(image, detections["boxes"][:1], ["cat 0.90"], draw.VERMILION, scale=4)
    picture = draw.detection_grid(table, read_image, detections, [0], width=240, most=1)
    assert picture.crop((252, bottom - 160, 492, bottom)) == best


def test_a_grid_of_images_without_anything(image, table):
    nothing = {
        "rows": np.zeros(0, np.int64),
        "boxes": np.zeros((0, 4), np.float32),
        "scores": np.zeros(0, np.float32),
        "labels": np.zeros(0, np.int64),
    }
    picture = draw.detection_grid(table, lambda row: image, nothing, [0, 1, 2], columns=2)
    assert picture.width > 4 * 320  # two pairs of small images, enlarged
    assert picture.height > 2 * 320 * 40 / 60
    assert draw.detection_grid(table, lambda row: image, nothing, []).size[0] > 0


def test_an_image_without_detections_says_why(image, table, monkeypatch):
    notes = []
    write = draw._write_note
    monkeypatch.setattr(draw, "_write_note", lambda picture, note: (notes.append(note), write(picture, note)))
    young = {
        "rows": np.array([0, 0, 2]),
        "boxes": np.array([[5, 20, 25, 35]] * 3, float),
        "scores": np.array([0.1, 0.21, 0.5]),
        "labels": np.array([1, 1, 1]),
    }
    picture = draw.detection_grid(table, lambda row: image, young, [0, 1, 2], columns=1, width=320)
    assert notes == ["none from score 0.3 (best 0.21)", "no detections"]
    right = np.asarray(picture)[:, 6 + 320 + 6 :]
    written = (np.abs(right.astype(int) - VERMILION).max(axis=2) < 60)[30:60]
    assert written.sum() > 200  # in the picture itself, below the title


def test_a_contact_sheet_takes_torchvisions_targets(image, tmp_path):
    targets = [
        {"boxes": torch.tensor([[5.0, 20.0, 25.0, 35.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {
            "boxes": torch.tensor([[5.0, 20.0, 25.0, 35.0]]),
            "labels": torch.tensor([1]),
            "iscrowd": torch.tensor([1]),
        },
    ]
    sheet = draw.contact_sheet([image] * 3, targets, ("cat", "dog"), columns=3, width=120)
    sheet.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        first, second, third = np.split(np.asarray(saved)[:, 6:-6], [123, 249], axis=1)
    assert pixels(first, BLUE).any() and not pixels(first, GREY).any()
    assert not pixels(second, BLUE).any() and not pixels(second, GREY).any()
    assert pixels(third, GREY).any() and not pixels(third, BLUE).any()


def test_titles_are_shortened_to_the_image(image):
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    sheets = [
        draw.contact_sheet([image], [target], ("cat",), titles=[title], width=100) for title in ("x" * 300, "x" * 400)
    ]
    assert sheets[0] == sheets[1]
    assert sheets[0].width < 120
