"""Patches that break the program, in its own process, before it starts: ``programs.call(…, patch=limited)``."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFile

from grcn.data import annotations as table
from grcn.data import coco_json, voc, voc_xml
from grcn.data import images as transforms
from grcn.data import validate as packing
from grcn.models import detector


def limited() -> None:
    """Leaves it 200 MB more memory than it has, and 5 seconds of computing."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200 * 10**6,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))


def full_disk(name: str, free: int) -> None:
    """Fills the disk as soon as ``free`` bytes of a file of this name are written."""
    real = builtins.open

    class Full(io.FileIO):
        def write(self, contents: Any) -> int:
            if self.tell() + len(contents) > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(contents)

    def full_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not fnmatch(os.path.basename(os.fspath(file)) if not isinstance(file, int) else "", f"*{name}"):
            return real(file, mode, *args, **kwargs)
        buffered = io.BufferedWriter(Full(file, mode.replace("b", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    builtins.open = io.open = full_open


def without_access() -> None:
    """Denies access to an image, also to the superuser."""

    def opened(path: str | os.PathLike[str], mode: str) -> Any:
        if str(path).endswith("train/1.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, mode)

    transforms.read_bytes.__globals__["open"] = opened


def vanishing() -> None:
    """Removes an image after the data set was found complete."""
    read = transforms.read_image

    def remove_and_read(path: str, **options: Any) -> Any:
        Path("data/train/1.jpg").unlink(missing_ok=True)
        return read(path, **options)

    transforms.read_image = remove_and_read


# One guard less. A check that still succeeds then is none.


def without_pixel_limit() -> None:
    limited()
    transforms.MOST_PIXELS = 10**10


def with_truncated_images() -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True


def without_nan_checks() -> None:
    """Removes all guards between a box of NaN and torchvision's operators."""
    pack = voc.pack

    def careless(*args: Any, **options: Any) -> table.Annotations:
        packed = pack(*args, **options | {"boxes": np.nan_to_num(options["boxes"])})
        return replace(packed, boxes=np.array(options["boxes"]))

    voc.pack = careless
    detector.check_targets = lambda *_: None


def without_box_checks() -> None:
    packing._check_boxes = lambda name, boxes, *_: np.arange(len(boxes))


def without_path_checks() -> None:
    coco_json.is_contained = lambda path: True


def without_number_checks() -> None:
    voc_xml.number_of = lambda *_: 48.0


def without_doctype_checks() -> None:
    del voc_xml._TreeBuilder.doctype
