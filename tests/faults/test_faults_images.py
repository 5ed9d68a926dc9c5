"""Bad image files, given to the real program. The damaged one is train/1.jpg of four."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_data import (
    Damage,
    Record,
    bad,
    both,
    check_all,
    check_long_path,
    check_without,
    contents,
    good,
    noise,
    nothing,
    removed,
    replaced,
    size_is,
)
from PIL import Image
from sabotage import limited, vanishing, with_truncated_images, without_access, without_pixel_limit

IMAGE = "train/1.jpg"


def stored(picture: Image.Image, form: str, size: tuple[int, int] | None = None, **options: Any) -> Damage:
    """Stores another picture, annotated with its size or with the one given."""
    return both(
        lambda root: picture.save(root / IMAGE, form, **options),
        size_is(1, *(size or picture.size)),
    )


def cut(form: str, share: float) -> Damage:
    """Stores the beginning of an image file."""

    def damage(root: Path) -> None:
        noise().save(root / IMAGE, form)
        os.truncate(root / IMAGE, int((root / IMAGE).stat().st_size * share))

    return damage


def struck(form: str) -> Damage:
    """Stores an image file with some bytes in its middle overwritten."""

    def damage(root: Path) -> None:
        noise().save(root / IMAGE, form)
        data = (root / IMAGE).read_bytes()
        middle = len(data) // 2
        (root / IMAGE).write_bytes(data[:middle] + bytes(range(16)) + data[middle + 16 :])

    return damage


def png(width: int, height: int, kind: bytes = b"IDAT", start: bytes = b"", zeros: int = 0) -> Damage:
    """Stores a PNG of this size with one chunk, in which so many zeros are packed."""

    def damage(root: Path) -> None:
        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(bytes(10**6)) for _ in range(zeros // 10**6)) + packer.flush()
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (kind, start + packed), (b"IEND", b"")]
        parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        (root / IMAGE).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    return damage


def turned(orientation: int, annotated_as_seen: bool) -> Damage:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lies = orientation > 4
    return stored(noise(), "JPEG", (48, 64) if lies and annotated_as_seen else (64, 48), exif=exif)


def of_sizes(*sizes: tuple[int, int]) -> Damage:
    """Gives all four images other sizes."""

    def damage(root: Path) -> None:
        for number, size in enumerate(sizes):
            noise(*size).save(root / f"train/{number}.jpg", "PNG")
            size_is(number, *size)(root)

    return damage


FRAMES = {"save_all": True, "append_images": [noise(seed=1), noise(seed=2)]}
SIXTEEN = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))
SIZES = [
    ((1, 1), (1, 500), (500, 1), (3, 3000)),
    ((3000, 3), (2, 2), (1, 2), (17, 1)),
    ((64, 5), (5, 640), (9, 9), (4, 1)),
]
MODES = [("CMYK", "JPEG"), ("L", "JPEG"), ("LA", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("P", "GIF"), ("YCbCr", "TIFF")]
NO_IMAGE, NO_DECODING = f"data/{IMAGE}: not an image", f"data/{IMAGE}: image cannot be decoded"

CASES = [
    bad("missing", removed(IMAGE), f"data/{IMAGE}: no such image", "1 of 4", in_workers=True),
    bad("folder missing", lambda root: shutil.rmtree(root / "train"), "train/0.jpg: no such", "4 of 4", "data.root"),
    bad(
        "folder is a file",
        both(lambda root: shutil.rmtree(root / "train"), contents("train", "")),
        "data/train/0.jpg: no such image", "4 of 4",
    ),
    bad("name in another case", lambda root: (root / IMAGE).rename(root / "train/1.JPG"), "rename '1.JPG'"),
    bad("empty", contents(IMAGE, ""), NO_IMAGE, "starts with ''", in_workers=True),
    bad("web page", contents(IMAGE, "<html><body>404</body>"), NO_IMAGE, "<html>"),
    bad("escapes", contents(IMAGE, "\x1b]0;owned\x07\n" * 9), NO_IMAGE, r"'\x1b]0;owned"),
    bad("PostScript", stored(noise(), "EPS"), NO_IMAGE, "%!PS"),
    bad("PDF", stored(noise(), "PDF"), NO_IMAGE, "%PDF"),
    bad("icon", stored(noise(48, 48), "ICO"), NO_IMAGE),
    *(
        bad(f"{form} cut at {share}", cut(form, share), f"data/{IMAGE}: ", " image")
        for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
        for share in (0.01, 0.3, 0.6, 0.9)
    ),
    bad("JPEG cut in a worker", cut("JPEG", 0.5), NO_DECODING, "truncated", in_workers=True),
    bad("PNG struck in its middle", struck("PNG"), NO_DECODING),
    good("JPEG struck in its middle, which its format cannot show", struck("JPEG")),
    *(good(f"mode {mode} in {form}", stored(noise().convert(mode), form)) for mode, form in MODES),
    good("palette with transparency", stored(noise().convert("P"), "PNG", transparency=3)),
    good("16 bits", stored(SIXTEEN, "PNG")),
    bad("32-bit integers", stored(noise().convert("I"), "TIFF"), NO_DECODING, "32 bits"),
    bad("32-bit floats", stored(noise().convert("F"), "TIFF"), NO_DECODING, "32 bits"),
    *(good(f"frames in {form}", stored(noise(), form, **FRAMES)) for form in ("GIF", "PNG", "TIFF", "MPO")),
    *(good(f"orientation {turn}, annotated as seen", turned(turn, True)) for turn in range(1, 9)),
    *(
        bad(f"orientation {turn}, annotated as stored", turned(turn, False), f"data/{IMAGE}: ", "48 x 64", "EXIF")
        for turn in range(5, 9)
    ),
    bad("another size", stored(noise(), "PNG", (64, 47)), f"data/{IMAGE}", "64 x 48", "64 x 47", in_workers=True),
    *(good(f"sizes {sizes}", of_sizes(*sizes)) for sizes in SIZES),
    bad("over the limit by its header", png(10_001, 10_000), "10001 x 10000", "100 megapixels", patch=limited),
    bad(
        "over the limit, in 12 KB", png(10_000, 10_400, zeros=12 * 10**6), f"data/{IMAGE}", "10000 x 10400",
        patch=limited,
    ),
    bad("over Pillow's limit", png(60_000, 60_000), f"data/{IMAGE}", "100 megapixels", patch=limited),
    bad("text of 200 MB", png(64, 48, b"zTXt", b"a\0\0", 2 * 10**8), NO_DECODING, patch=limited),
    good("PNG under the name of a JPEG", stored(noise(), "PNG")),
    bad("folder", replaced(IMAGE, Path.mkdir), f"data/{IMAGE}: not a file"),
    bad("pipe", replaced(IMAGE, os.mkfifo), f"data/{IMAGE}: not a file"),
    bad("device", replaced(IMAGE, lambda path: path.symlink_to("/dev/zero")), f"data/{IMAGE}: not a file"),
    bad("link to nothing", replaced(IMAGE, lambda path: path.symlink_to("nowhere")), f"data/{IMAGE}: no such file"),
    bad("link to itself", replaced(IMAGE, lambda path: path.symlink_to(path.name)), f"data/{IMAGE}: no such file"),
    bad("no access", nothing, f"data/{IMAGE}: Permission denied", patch=without_access),
    bad("gone after the start", nothing, f"data/{IMAGE}: no such file", patch=vanishing, in_workers=True),
    *(
        good(f"all pixels {name}", stored(Image.new("RGB", (64, 48), name), "PNG"))
        for name in ("black", "white", "grey")
    ),
]  # fmt: skip


def test_images(tmp_path: Path, faults: int, record_property: Record) -> None:
    record_property("faults", check_all("images", "coco", CASES, tmp_path, faults))


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow says so first
def test_a_long_path_stays_whole(tmp_path: Path) -> None:
    check_long_path("coco", CASES, tmp_path, IMAGE)


@pytest.mark.parametrize(
    ("name", "guard"), [("over the limit, in 12 KB", without_pixel_limit), ("JPEG cut at 0.6", with_truncated_images)]
)
def test_without_a_guard_the_check_fails(tmp_path: Path, name: str, guard: Callable[[], None]) -> None:
    with pytest.raises(AssertionError, match="expected 3"):
        check_without(guard, CASES, name, "coco", tmp_path)
