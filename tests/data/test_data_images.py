from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Transpose
from PIL.PngImagePlugin import PngInfo
from torch.testing import assert_close
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from grcn.data.annotations import Annotations
from grcn.data.augment import horizontal_flip
from grcn.data.images import FileImages, read_header, read_image, to_rgb_tensor
from grcn.data.validate import pack
from grcn.errors import DataError

ORIENTATION = 0x0112
# What displays an image of each EXIF orientation upright, by the EXIF standard.
UPRIGHT = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


# The modes that each format can hold.
MODES = {
    "jpg": ["1", "L", "RGB", "CMYK", "YCbCr"],
    "png": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB"],
    "gif": ["1", "L", "P", "RGB"],
    "tif": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"],
    "webp": ["L", "RGB", "RGBA"],
}


def picture(mode: str = "RGB") -> Image.Image:
    """48 wide, 32 high; smooth, and different under every flip and rotation."""
    y, x = np.mgrid[:32, :48]
    array = np.stack([x * 5, y * 7, (x + 2 * y) * 2], -1).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def png(header: bytes, rows: list[bytes]) -> bytes:
    """Encodes PNG rows as they are, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def one_image(root: Path, name: str, size: tuple[int, int]) -> Annotations:
    empty: dict[str, list] = {"rows": [], "boxes": [], "labels": []}
    return pack("t", ["a"], image_ids=[1], files=[name], sizes=[size], root=str(root), **empty)


@pytest.mark.parametrize(("suffix", "mode"), [(s, mode) for s in MODES for mode in MODES[s]])
def test_every_mode_is_read_as_pillow_reads_it(tmp_path, suffix, mode):
    path = tmp_path / f"image.{suffix}"
    picture(mode).save(path)
    image = read_image(path)
    assert image.dtype == torch.uint8
    expected = pixels(Image.open(path))
    assert image.shape == expected.shape == (3, 32, 48)
    assert (image.int() - expected.int()).abs().max() == 0


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("tif", "L"), ("webp", "RGB")],
)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, suffix, mode, orientation):
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    picture(mode).save(path, exif=exif, **options)
    turn = UPRIGHT[orientation]
    picture(mode).save(tmp_path / f"stored.{suffix}", **options)
    stored = Image.open(tmp_path / f"stored.{suffix}")
    expected = pixels(stored if turn is None else stored.transpose(turn))
    image = read_image(path)
    assert image.shape[1:] == ((48, 32) if orientation > 4 else (32, 48))
    header = read_header(str(path))
    assert header is not None and header.displayed_size == image.shape[1:]
    assert torch.equal(image, expected)


def test_sixteen_bits_keep_their_high_half(tmp_path):
    values = np.linspace(0, 65535, 96).astype(">u2").reshape(2, 16, 3)
    high = torch.from_numpy((values >> 8).astype(np.uint8)).permute(2, 0, 1)
    header = struct.pack(">IIBBBBB", 16, 2, 16, 2, 0, 0, 0)
    (tmp_path / "rgb.png").write_bytes(png(header, [row.tobytes() for row in values]))
    assert torch.equal(read_image(tmp_path / "rgb.png"), high)
    grey = np.ascontiguousarray(values[..., 0]).astype(np.uint16)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        assert torch.equal(read_image(tmp_path / name), high[:1].expand(3, -1, -1))


def sixteen(largest: int) -> np.ndarray:
    return np.linspace(0, largest, 32 * 48).reshape(32, 48).astype(np.uint16)


@pytest.mark.parametrize(("bits", "largest"), [(None, 65535), (16, 65535), (12, 4095), (10, 1023), (8, 255)])
def test_the_bits_in_use_become_eight(tmp_path, bits, largest):
    values = sixteen(largest)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", bits=bits)
    exact = torch.from_numpy(values * (255 / largest))
    assert image.dtype == torch.uint8 and image.min() == 0 and image.max() == 255
    assert (image - exact).abs().max() <= 1
    table = one_image(tmp_path, "a.png", (32, 48))
    assert torch.equal(FileImages(table, bits)(0), image) and torch.equal(to_rgb_tensor(values, bits), image)
    if bits == 12:
        Image.fromarray(values * 4).save(tmp_path / "a.png")
        bright = read_image(tmp_path / "a.png", bits=bits)
        assert (bright[:, values >= 1024] == 255).all() and torch.equal(bright.amax(0) < 255, bright[0] < 255)
        picture().save(tmp_path / "a.png")
        assert torch.equal(FileImages(table, bits)(0), pixels(picture()))  # of 8 bits


def test_a_dark_image_of_sixteen_bits_is_reported():
    for largest, bits, expected in (
        (0, None, []), (999, None, [10]), (4095, None, [12]), (4096, None, []), (4095, 12, []), (255, 12, [8]),
    ):  # fmt: skip
        seen: list[int] = []
        to_rgb_tensor(sixteen(largest), bits, seen.append)
        assert seen == expected, (largest, bits)


STORED = {
    "grey16.png": Image.fromarray(sixteen(65535)), "dark16.png": Image.fromarray(sixteen(4095)),
    "grey16.tif": Image.fromarray(sixteen(65535)), "big16.tif": Image.fromarray(sixteen(65535).astype(">u2")),
    **{f"{mode}.png": picture(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"{mode}.tif": picture(mode) for mode in ("CMYK", "YCbCr", "LAB", "I", "F")},
    "photo.jpg": picture(), "turned.jpg": picture(), "mirrored.tif": Image.fromarray(sixteen(65535)),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("bits", [None, 12])
def test_one_picture_has_the_same_pixels_however_it_is_given(tmp_path, name, bits):
    path, exif = tmp_path / name, Image.Exif()
    exif[ORIENTATION] = {"turned.jpg": 6, "mirrored.tif": 2}.get(name, 1)
    STORED[name].save(path, exif=exif)
    data = path.read_bytes()
    buffer = io.BytesIO()
    buffer.write(data)  # which leaves it at its end
    with Image.open(path) as opened, path.open("rb") as file:
        before = opened.getexif().get(ORIENTATION), opened.size
        given = [path, str(path), data, bytearray(data), buffer, file, opened, file, opened]
        if name[0] in "IF":
            for image in given:
                with pytest.raises(DataError, match="32 bits per channel, mode [IF]"):
                    to_rgb_tensor(image, bits)
            return
        found = [to_rgb_tensor(image, bits) for image in given]
        if opened.format != "TIFF":  # which Pillow itself turns as it decodes
            assert before == (opened.getexif().get(ORIENTATION), opened.size)
    assert found[0].shape == ((3, 48, 32) if name == "turned.jpg" else (3, 32, 48))
    for image in found:
        assert torch.equal(image, read_image(path, bits=bits))


def test_arrays_of_any_strides_become_tensors_of_their_own():
    rgb = np.array(picture())
    wide = np.zeros((32, 96, 5), np.uint8)
    wide[:, ::2, 1:4] = rgb
    locked = rgb.copy()
    locked.setflags(write=False)
    alpha = np.dstack([rgb, np.zeros((32, 48), np.uint8)])
    fortran = np.asfortranarray(rgb)
    given = (rgb, rgb[:, :, ::-1][:, :, ::-1], wide[:, ::2, 1:4], fortran, locked, alpha, rgb.astype(np.uint16) << 8)
    for array in given:
        image = to_rgb_tensor(array)
        assert torch.equal(image, pixels(picture()))
        image.fill_(0)
        assert array.any()
    assert torch.equal(to_rgb_tensor(rgb[:, :, ::-1]), pixels(picture()).flip(0))
    assert torch.equal(to_rgb_tensor(rgb[::-1]), pixels(picture()).flip(1))
    assert torch.equal(to_rgb_tensor(rgb[:, ::-1]), pixels(picture()).flip(2))
    grey = rgb[:, :, 1]
    for array in (grey, grey[:, :, None], grey.astype(np.uint16) << 8, (grey.astype(np.uint16) << 8).astype(">u2")):
        assert torch.equal(to_rgb_tensor(array), pixels(picture())[1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, r"an image must be .* \(got None\)"),
        (3, TypeError, r"\(got int\)"),
        ([[0]], TypeError, r"\(got list\)"),
        (io.StringIO("text"), TypeError, r'opened with "rb"'),
        (b"", DataError, "^image: not an image"),
        (b"<html>", DataError, "^image: not an image"),
        (np.zeros((8, 8)), ValueError, r"must be uint8 or uint16, .* \(got float64 \[8, 8\]\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"got uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8, 3), np.int16), ValueError, r"got int16 \[8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint32), ValueError, r"got uint32 \[8, 8, 3\]"),
        (np.zeros(8, np.uint8), ValueError, r"got uint8 \[8\]"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "must have pixels"),
        (np.zeros((0, 8), np.uint16), ValueError, "must have pixels"),
        (Image.new("RGB", (0, 8)), ValueError, "must have pixels"),
        (torch.zeros(3, 0, 8), ValueError, "must have pixels"),
        (torch.zeros(8, 8, 3), ValueError, "must be uint8 or float"),
        (torch.zeros(3, 8, 8).long(), ValueError, "must be uint8 or float"),
    ],
)
def test_what_is_no_image_is_one_clear_error(image, error, message):
    with pytest.raises(error, match=message):
        to_rgb_tensor(image)


def test_a_pillow_image_that_cannot_be_decoded_is_named(tmp_path):
    picture().save(tmp_path / "cut.png")
    os.truncate(tmp_path / "cut.png", (tmp_path / "cut.png").stat().st_size // 2)
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(DataError, match=r"cut\.png: image cannot be dec"):
        to_rgb_tensor(opened)
    with pytest.raises(DataError, match="cannot be decoded"):
        to_rgb_tensor(opened)  # it is closed


def test_transparency_shows_the_colour_beneath(tmp_path):
    image = picture("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "alpha.png")
    assert torch.equal(read_image(tmp_path / "alpha.png"), pixels(picture()))
    picture().save(tmp_path / "key.png", transparency=(0, 0, 0))
    assert torch.equal(read_image(tmp_path / "key.png"), pixels(picture()))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(tmp_path, mode):
    picture("L").convert(mode).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=r"image\.tif: image cannot be decoded .*32 bits"):
        read_image(tmp_path / "image.tif")
    assert read_header(str(tmp_path / "image.tif")) is None


@pytest.mark.parametrize("largest", [4095, 65535])
@pytest.mark.parametrize("bits", [None, 12])
def test_a_pgm_says_itself_how_many_of_16_bits_it_uses(tmp_path, largest, bits):
    values = np.linspace(0, largest, 12).astype(">u2").reshape(3, 4)
    (tmp_path / "image.pgm").write_bytes(b"P5\n4 3\n%d\n" % largest + values.tobytes())
    image = read_image(tmp_path / "image.pgm", bits)
    assert image.shape == (3, 3, 4) and torch.equal(image[0], image[2])
    assert_close(image[0], torch.from_numpy(values.astype(np.float64) * 255.99 / largest).byte(), atol=1, rtol=0)
    assert read_header(str(tmp_path / "image.pgm")).displayed_size == (3, 4)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_of_a_png_may_be_in_xmp(tmp_path, orientation):
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{orientation}"/>')
    picture().save(tmp_path / "image.png", pnginfo=text)
    image, header = read_image(tmp_path / "image.png"), read_header(str(tmp_path / "image.png"))
    assert image.shape[1:] == ((48, 32) if orientation > 4 else (32, 48))
    assert header is not None and header.displayed_size == image.shape[1:]


def test_the_content_decides_the_format(tmp_path):
    picture().save(tmp_path / "image.jpg", "PNG")
    assert torch.equal(read_image(tmp_path / "image.jpg"), pixels(picture()))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("TIFF", "RGB"), ("BMP", "RGB")],
)
def test_truncation_is_found_at_any_length(tmp_path, suffix, mode):
    buffer = io.BytesIO()
    picture(mode).save(buffer, suffix)
    data = buffer.getvalue()
    path = tmp_path / "image.jpg"
    # What follows the pixels may be lost: JPEG's end mark, PNG's checksums and empty last chunk.
    end = len(data) - {"JPEG": 2, "PNG": 20}.get(suffix, 0)
    for length in {*range(1, end, 1 + end // 20), end - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"image\.jpg: (image cannot be dec|not an image)") as error:
            read_image(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) - len(str(path)) < 200


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\0" * 50])
def test_what_is_no_image(tmp_path, data):
    (tmp_path / "image.jpg").write_bytes(data)
    with pytest.raises(DataError, match=r"image\.jpg: not an image \(starts with"):
        read_image(tmp_path / "image.jpg")


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000)])
def test_over_a_hundred_megapixels_are_refused_before_decoding(tmp_path, size):
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    (tmp_path / "image.png").write_bytes(png(header, []))
    with pytest.raises(DataError, match=r"image\.png: image has over 100 megapixels"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("suffix", ["EPS", "PDF", "ICO", "TGA", "PCX"])
def test_unusual_formats_are_not_opened(tmp_path, suffix):
    picture().save(tmp_path / "image.jpg", suffix)
    with pytest.raises(DataError, match=r"image\.jpg: not an image \(starts with"):
        read_image(tmp_path / "image.jpg")


def test_missing_files_are_counted_before_anything_is_read(tmp_path):
    picture().save(tmp_path / "a.jpg")
    files = ["a.jpg", "b.jpg", "no folder/c.jpg"]
    empty: dict[str, list] = {"rows": [], "boxes": [], "labels": []}
    table = pack(
        "t",
        ["x"],
        image_ids=[1, 2, 3],
        files=files,
        sizes=[(32, 48)] * 3,
        root=str(tmp_path),
        **empty,
    )
    with pytest.raises(DataError, match=r"b\.jpg: no such image \(2 of 3 images missing\); add"):
        FileImages(table)
    (tmp_path / "B.JPG").write_bytes(b"")
    with pytest.raises(DataError, match=r"rename 'B\.JPG'"):
        FileImages(table)


def test_reads_the_images_of_a_table(tmp_path):
    picture().save(tmp_path / "a.png")
    images = FileImages(one_image(tmp_path, "a.png", (32, 48)))
    assert torch.equal(images(0), pixels(picture()))
    os.remove(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        images(0)


def test_a_size_unlike_the_annotated_one_is_an_error(tmp_path):
    picture().save(tmp_path / "a.jpg")
    message = r"a\.jpg: image size \(got 48 x 32\) is not the annotated 47 x 32; fix it"
    with pytest.raises(DataError, match=message):
        FileImages(one_image(tmp_path, "a.jpg", (32, 47)))(0)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert FileImages(one_image(tmp_path, "a.jpg", (48, 32)))(0).shape == (3, 48, 32)
    with pytest.raises(DataError, match="got 32 x 48. is not the annotated 48 x 32; mind EXIF orientation"):
        FileImages(one_image(tmp_path, "a.jpg", (32, 48)))(0)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 300)])
def test_extreme_sizes(tmp_path, size):
    Image.new("RGB", size[::-1], (1, 2, 3)).save(tmp_path / "a.png")
    image = FileImages(one_image(tmp_path, "a.png", size))(0)
    assert image.shape == (3, *size)
    assert image[:, 0, 0].tolist() == [1, 2, 3]


def test_flip_is_torchvisions_and_its_own_inverse():
    image = pixels(picture())
    boxes = torch.tensor([[0.0, 0, 48, 32], [1.5, 2, 7.25, 9]], dtype=torch.float64)
    flipped, flipped_boxes = horizontal_flip(image, boxes)
    expected = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(32, 48))  # type: ignore[call-overload]
    assert torch.equal(flipped, functional.horizontal_flip(image))
    assert torch.equal(flipped_boxes, functional.horizontal_flip(expected).as_subclass(torch.Tensor))
    again, boxes_again = horizontal_flip(flipped, flipped_boxes)
    assert torch.equal(again, image)
    assert torch.equal(boxes_again, boxes)
    assert horizontal_flip(image, torch.zeros(0, 4))[1].shape == (0, 4)


def test_a_flipped_box_holds_the_same_pixels():
    image = torch.zeros(1, 6, 10)
    image[:, 1:3, 2:7] = 1
    flipped, boxes = horizontal_flip(image, torch.tensor([[2.0, 1, 7, 3]]))
    x1, y1, x2, y2 = boxes[0].int().tolist()
    assert flipped[:, y1:y2, x1:x2].min() == 1
    assert flipped.sum() == (x2 - x1) * (y2 - y1)
