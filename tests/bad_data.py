"""Small data sets, damages to them, and how the real program must handle each.

A case is one damage to a data set of four images with a cat or a dog each. Either the program ends with exit code 3 in
one clear line, or it trains and evaluates.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import programs
from PIL import Image

from grcn import errors
from grcn.data import coco, voc
from grcn.data.images import FileImages
from grcn.errors import DataError

Damage = Callable[[Path], object]
Record = Callable[[str, object], None]

JSON = "annotations/instances_train.json"
ANNOTATIONS = f"data/{JSON}"
XML = "VOC2007/Annotations/1.xml"
LIST = "VOC2007/ImageSets/Main/train.txt"
# How messages begin.
AT, IMAGE_AT, CLASS_AT = (f"{ANNOTATIONS}#/{key}/1" for key in ("annotations", "images", "categories"))
AT_XML, AT_LIST = f"data/{XML}: ", f"data/{LIST}:"
OBJECT = AT_XML + "object 1: "

CONFIG = """
model: {{backbone: tiny, width: 8, image: {{short: 64, max: 64}}, anchors: {{sizes: [16, 32]}}, head: {{dim: 16}}}}
data: {{format: {0}, root: data, train: [{1}], test: [{1}]}}
train: {{steps: 2, batch: 2, log_every: 1}}
eval: {{pictures: 0, protocols: [coco]}}
run: {{workers: 0, device: cpu, threads: 1}}
"""
SPLITS = {"coco": "train", "voc": "VOC2007/train"}
ANNOTATION = """<annotation>
<size><width>64</width><height>48</height><depth>3</depth></size>
<object>
<name>{}</name>
<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>35</xmax><ymax>36</ymax></bndbox>
</object>
</annotation>
"""


@dataclass(frozen=True)
class Case:
    """One damage, the exit code it must lead to, and texts that the line on stderr must have."""

    name: str
    damage: Damage
    texts: tuple[str, ...]
    code: int
    settings: tuple[str, ...] = ()
    patch: Callable[[], None] | None = None
    in_workers: bool = False

    def with_workers(self) -> Case:
        """Returns the case with its images read by other processes."""
        return replace(self, name=f"{self.name}[workers]", settings=(*self.settings, "run.workers=2"))


def bad(name: str, damage: Damage, *texts: str, settings: Iterable[str] = (), **options: Any) -> Case:
    """The program must refuse it, in a line with these texts."""
    return Case(name, damage, texts, 3, tuple(settings), **options)


def good(name: str, damage: Damage, *texts: str, settings: Iterable[str] = (), **options: Any) -> Case:
    """The program must cope with it; the texts are of warnings."""
    return Case(name, damage, texts, 0, tuple(settings), **options)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(root: Path, layout: str) -> None:
    """Writes the undamaged data set."""
    folder = root / ("train" if layout == "coco" else "VOC2007/JPEGImages")
    folder.mkdir(parents=True)
    for number in range(4):
        noise(seed=number).save(folder / f"{number}.jpg")
    if layout == "voc":
        (root / XML).parent.mkdir()
        (root / LIST).parent.mkdir(parents=True)
        (root / LIST).write_text("0\n1\n2\n3\n")
        for number in range(4):
            (root / XML).with_stem(str(number)).write_text(ANNOTATION.format(("cat", "dog")[number % 2]))
        return
    (root / JSON).parent.mkdir()
    size, box = {"width": 64, "height": 48}, {"bbox": [5, 6, 30, 30], "area": 800, "iscrowd": 0}
    document = {
        "images": [{"id": number, "file_name": f"{number}.jpg", **size} for number in range(4)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1 + n % 2, **box} for n in range(4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / JSON).write_text(json.dumps(document))


def check(case: Case, folder: Path, layout: str) -> None:
    """Runs the program on a damaged data set; asserts that it ends as it must."""
    write(folder / "data", layout)
    case.damage(folder / "data")
    (folder / "c.yaml").write_text(CONFIG.format(layout, SPLITS[layout]))
    args = ["--config", "c.yaml", "--output-dir", "run", *case.settings]
    result = programs.call("tools/train.py", *args, folder=folder, patch=case.patch)
    if case.code:
        programs.assert_contract(result, case.code, *case.texts)
        left = {path.name for path in (folder / "run").rglob("*")}
        assert left <= {".lock", "config.yaml", "env.json", "metrics.jsonl", "checkpoints"}, f"half written: {left}"
        return
    assert result.code == 0, f"exit {result.code}, expected 0\n{result.stderr}"
    assert "Traceback" not in result.stderr and "error" not in result.stderr, result.stderr
    assert isinstance(json.loads(result.stdout.splitlines()[-1]), dict)
    first, second, _ = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    assert all(map(math.isfinite, [*first.values(), *second.values()])), (first, second)
    for text in case.texts:
        assert text in result.stderr, f"does not say {text!r}\n{result.stderr}"


def check_without(guard: Callable[[], None], cases: Iterable[Case], name: str, layout: str, folder: Path) -> None:
    """Checks one case in a program that lacks a guard: a control, which must not pass."""
    (case,) = (case for case in cases if case.name == name)
    check(replace(case, patch=guard), folder, layout)


def check_all(family: str, layout: str, cases: list[Case], folder: Path, faults: int) -> str:
    """Checks all cases of a family, or a twelfth of them where little fault injection is asked for; sums up."""
    cases = [*cases, *(case.with_workers() for case in cases if case.in_workers)]
    assert len({case.name for case in cases}) == len(cases)
    failures = []
    chosen = cases if faults > 1 else cases[::12]
    for number, case in enumerate(chosen):
        place = folder / str(number)
        place.mkdir()
        try:
            check(case, place, layout)
        except AssertionError as error:
            failures.append(f"{case.name}: {error}")
        shutil.rmtree(place)
    assert not failures, f"{len(failures)} of {len(chosen)} cases:\n" + "\n".join(failures)
    refused = sum(case.code != 0 for case in chosen)
    return (
        f"bad input, {family}: {len(chosen)} of {len(chosen)} cases ended as they must, {refused} with exit 3 in one "
        f"clear line, {len(chosen) - refused} by training"
    )


def check_long_path(layout: str, cases: list[Case], folder: Path, file: str) -> None:
    """Asserts that a path of 199 letters stays whole in every message; only the values are shortened."""
    read = {"coco": coco.load, "voc": voc.load}[layout]
    root = folder / ("x" * (198 - len(str(folder / file))))
    seen = 0
    for case in cases:
        if not case.texts or not case.texts[0].startswith(f"data/{file}"):
            continue
        write(root, layout)
        case.damage(root)
        try:
            images = FileImages(read(root, [SPLITS[layout]]))
            images(1)
        except DataError as error:
            message = str(error)
            assert message.startswith(str(root)) and case.texts[0].removeprefix("data/") in message, message
            assert len(errors.PREFIX + message) <= errors.LONGEST_LINE and "; " in message, message
            seen += 1
        shutil.rmtree(root)
    assert seen > 5 and len(str(root / file)) == 199


# Damages of any layout.


def both(*damages: Damage) -> Damage:
    return lambda root: [damage(root) for damage in damages]


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    """Puts something else in the place of a file."""
    return lambda root: [(root / name).unlink(), make(root / name)]


def removed(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def contents(name: str, data: str | bytes) -> Damage:
    return lambda root: (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def rewritten(name: str, change: Callable[[str], str | bytes]) -> Damage:
    """Changes the text of a file."""
    return lambda root: contents(name, change((root / name).read_text()))(root)


def nothing(root: Path) -> None:
    """Leaves a data set undamaged."""


# Damages of the layout of COCO.


def set_field(document: Any, *keys: Any, to: Any) -> Any:
    """Sets a field somewhere in a document, which is returned; KeyError removes it."""
    target = document
    for key in keys[:-1]:
        target = target[key]
    if to is KeyError:
        del target[keys[-1]]
    else:
        target[keys[-1]] = to
    return document


def put(*keys: Any, to: Any) -> Damage:
    """Sets a field of the annotations; KeyError removes it."""
    return rewritten(JSON, lambda text: json.dumps(set_field(json.loads(text), *keys, to=to)))


def every_annotation(**fields: Any) -> Damage:
    """Sets fields of all annotations."""

    def change(text: str) -> str:
        document = json.loads(text)
        document["annotations"] = [record | fields for record in document["annotations"]]
        return json.dumps(document)

    return rewritten(JSON, change)


def size_is(number: int, width: int, height: int) -> Damage:
    """Annotates an image with this size and a box of all of it."""
    record = {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
    return both(put("images", number, to=record), put("annotations", number, "bbox", to=[0, 0, width, height]))


# Damages of the layout of VOC.


def xml(old: str, new: str) -> Damage:
    return rewritten(XML, lambda text: text.replace(old, new, 1))


def without(tag: str) -> Damage:
    return rewritten(XML, lambda text: re.sub(f"<{tag}>.*?</{tag}>", "", text, flags=re.DOTALL))


def in_all_annotations(old: str, new: str) -> Damage:
    def damage(root: Path) -> None:
        for path in (root / XML).parent.iterdir():
            path.write_text(path.read_text().replace(old, new))

    return damage
