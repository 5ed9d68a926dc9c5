"""Random small data sets in the dialects of annotation tools: the table that is read is the one that was meant.

Each dialect writes the same images and boxes as a tool does, with its habits. Nothing of a tool is run.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from grcn.data import coco, voc, yolo
from grcn.data.annotations import Annotations
from grcn.data.faults import Notes

CLASSES = ("bolt", "nut", "wing nut")


@dataclass
class Picture:
    """One image that is meant: its name without suffix, size, and objects as label and whole xyxy."""

    stem: str
    width: int
    height: int
    objects: list[tuple[int, list[int]]] = field(default_factory=list)


def meant(chance: random.Random) -> list[Picture]:
    """Draws a few images; every class is used at least once, as tools drop those that are not."""
    stems = chance.sample(["a", "b 1", "c 0", "img-07", "IMG_8", "x.y", "p q r", "0001"], chance.randint(2, 5))
    pictures = [Picture(stem, chance.randint(40, 90), chance.randint(40, 90)) for stem in sorted(stems)]
    labels = [1, 2, 3, *(chance.randint(1, 3) for _ in range(chance.randint(0, 6)))]
    for label in labels:
        picture = chance.choice(pictures)
        x, y = chance.randint(1, picture.width - 20), chance.randint(1, picture.height - 20)
        picture.objects.append((label, [x, y, x + chance.randint(5, 19), y + chance.randint(5, 19)]))
    return pictures


def draw(picture: Picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (picture.width, picture.height), (90, 120, 40)).save(path)


# COCO's JSON


def coco_document(pictures: list[Picture], names: Callable[[Picture], str]) -> dict[str, Any]:
    images, annotations = [], []
    for number, picture in enumerate(pictures, start=1):
        size = {"width": picture.width, "height": picture.height}
        images.append({"id": number, "file_name": names(picture), **size})
        for label, (x1, y1, x2, y2) in picture.objects:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, **box})
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(
    root: Path, document: dict[str, Any], pictures: list[Picture], folder: str = "train", file: str = ""
) -> Annotations:
    """Writes pictures and annotations, where COCO has them or in ``file``, and reads both."""
    for picture in pictures:
        draw(picture, root / folder / f"{picture.stem}.jpg")
    target = root / (file or f"annotations/instances_{folder}.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document))
    return coco.load(root, [f"{folder}:{file}" if file else folder], notes=Notes())


def plain(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    return write_coco(root, coco_document(pictures, lambda one: f"{one.stem}.jpg"), pictures)


def label_studio(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Paths of the machine that exported, with either slash; ``result.json`` beside ``images``."""
    start = chance.choice(["images\\", "/data/upload/1/", "images/", "C:\\tmp\\images\\", ""])
    document = coco_document(pictures, lambda one: f"{start}{one.stem}.jpg")
    return write_coco(root, document, pictures, "images", "result.json")


def via(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Ids as text, and no sizes."""
    document = coco_document(pictures, lambda one: f"{one.stem}.jpg")
    for image in document["images"]:
        image["id"] = str(image["id"])
        image["width"] = image["height"] = chance.choice([-1, 0])
    for annotation in document["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["id"] = str(annotation["id"])
    return write_coco(root, document, pictures)


def roboflow(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """A root category that nothing uses, named as the project; annotation file beside the images."""
    document = coco_document(pictures, lambda one: f"{one.stem}.jpg")
    project = chance.choice(["parts", "bolt"])
    for category in document["categories"]:
        category["supercategory"] = project
    document["categories"].insert(0, {"id": 0, "name": project, "supercategory": "none"})
    return write_coco(root, document, pictures, file="train/_annotations.coco.json")


def coco_annotator(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Truth values for flags, nothing for areas, and ids of annotations that repeat."""
    document = coco_document(pictures, lambda one: f"{one.stem}.jpg")
    for annotation in document["annotations"]:
        annotation |= {"iscrowd": chance.choice([False, None, 0.0]), "isbbox": True, "area": chance.choice([None, 7])}
        annotation["id"] = chance.choice([annotation["id"], 1])
    return write_coco(root, document, pictures)


def pandas(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Every number a float, and NaN for missing ones."""
    document = coco_document(pictures, lambda one: f"{one.stem}.jpg")
    for image in document["images"]:
        image |= {"id": float(image["id"]), "width": float(image["width"]), "height": float(image["height"])}
    for annotation in document["annotations"]:
        annotation |= {key: float(annotation[key]) for key in ("id", "image_id", "category_id")}
        annotation["area"] = chance.choice([float("nan"), 12.5])
    return write_coco(root, document, pictures)


def labelbox(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Images known by unique names, or by their files."""
    document = coco_document(pictures, lambda one: f"{one.stem}.jpg")
    by_file = chance.random() < 0.5
    names = {}
    for image in document["images"]:
        made = str(uuid.UUID(int=chance.getrandbits(128)))
        names[image["id"]] = image["file_name"] if by_file else made
        image["id"] = image["id"] if by_file else made
    for annotation in document["annotations"]:
        annotation["image_id"] = names[annotation["image_id"]]
        del annotation["id"]
    return write_coco(root, document, pictures)


# PASCAL VOC's XML


def voc_xml(picture: Picture, chance: random.Random, size: bool = True, namespace: str = "", digits: int = 0) -> str:
    objects = []
    for label, (x1, y1, x2, y2) in picture.objects:
        corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
        tags = "".join(f"<{tag}>{value:.{digits}f}</{tag}>" for tag, value in corners.items())
        flag = chance.choice(["<difficult>0</difficult>", "<difficult>Unspecified</difficult>", "", "<difficult/>"])
        objects.append(f"<object><name>{CLASSES[label - 1]}</name>{flag}<bndbox>{tags}</bndbox></object>")
    sides = (picture.width, picture.height) if size else (0, 0)
    shape = f"<size><width>{sides[0]}</width><height>{sides[1]}</height><depth>3</depth></size>"
    return f"<annotation{namespace}><filename>{picture.stem}.jpg</filename>{shape}{''.join(objects)}</annotation>"


def write_voc(root: Path, pictures: list[Picture], xml: Callable[[Picture], str], images: str, labels: str) -> None:
    (root / labels).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        draw(picture, root / images / f"{picture.stem}.jpg")
        (root / labels / f"{picture.stem}.xml").write_text(xml(picture))


def voc_lists(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Lists of VOC's kind: bare names, names of files, quoted, in a folder, or with a flag."""
    write_voc(root / "set", pictures, lambda one: voc_xml(one, chance), "JPEGImages", "Annotations")
    form = chance.choice(["{0}", "{0}.jpg", "JPEGImages/{0}.jpg", '"{0}"', "{0} 1", "{0}.jpg 1"])
    lists = root / "set/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(form.format(picture.stem) + "\n" for picture in pictures))
    return voc.load(root, ["set/train"], CLASSES, notes=Notes())


def labelimg(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Images and XML side by side, without lists, at times without sizes."""
    xml = partial_xml(chance, size=chance.random() < 0.5)
    write_voc(root / "train", pictures, xml, ".", ".")
    return voc.load(root, ["train"], CLASSES, notes=Notes())


def cvat_voc(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """Corners with decimals."""
    write_voc(root / "set", pictures, partial_xml(chance, digits=2), "JPEGImages", "Annotations")
    lists = root / "set/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{picture.stem}\n" for picture in pictures))
    return voc.load(root, ["set/train"], CLASSES, notes=Notes())


def label_studio_voc(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    """``images`` and ``Annotations`` in one folder, and no lists."""
    namespace = chance.choice(["", ' xmlns="http://example.org/voc"'])
    write_voc(root / "train", pictures, partial_xml(chance, namespace=namespace), "images", "Annotations")
    return voc.load(root, ["train"], CLASSES, notes=Notes())


def partial_xml(chance: random.Random, **options: Any) -> Callable[[Picture], str]:
    return lambda picture: voc_xml(picture, chance, **options)


# YOLO's text


def yolo_lines(picture: Picture) -> str:
    lines = []
    for label, (x1, y1, x2, y2) in picture.objects:
        middle = (x1 + x2) / 2 / picture.width, (y1 + y2) / 2 / picture.height
        sides = (x2 - x1) / picture.width, (y2 - y1) / picture.height
        lines.append(f"{label - 1} " + " ".join(repr(value) for value in (*middle, *sides)))
    return "".join(f"{line}\n" for line in lines)


def write_yolo(root: Path, pictures: list[Picture], images: str, labels: str) -> None:
    (root / labels).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        draw(picture, root / images / f"{picture.stem}.jpg")
        if picture.objects:  # images without objects have no file
            (root / labels / f"{picture.stem}.txt").write_text(yolo_lines(picture))


def ultralytics(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    write_yolo(root, pictures, "images/train", "labels/train")
    names = chance.choice([list(CLASSES), dict(enumerate(CLASSES))])
    document = {"path": ".", "train": "images/train", "val": "images/train", "names": names}
    (root / "data.yaml").write_text(yaml.safe_dump(document))
    return yolo.load(root, ["train"], None, notes=Notes())


def roboflow_yolo(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    write_yolo(root, pictures, "train/images", "train/labels")
    document = {"train": "../train/images", "val": "../train/images", "nc": 3, "names": list(CLASSES)}
    (root / "data.yaml").write_text(yaml.safe_dump(document))
    return yolo.load(root, ["train"], None, notes=Notes())


def bare_yolo(chance: random.Random, root: Path, pictures: list[Picture]) -> Annotations:
    write_yolo(root, pictures, "images/train", "labels/train")
    return yolo.load(root, ["train"], CLASSES, notes=Notes())


DIALECTS = [
    plain, label_studio, via, roboflow, coco_annotator, pandas, labelbox, voc_lists, labelimg, cvat_voc,
    label_studio_voc, ultralytics, roboflow_yolo, bare_yolo,
]  # fmt: skip


def compare(dialect: Callable[..., Annotations], seed: int, root: Path) -> None:
    chance = random.Random(seed)
    pictures = meant(chance)
    table = dialect(chance, root, pictures)
    assert table.classes == CLASSES and len(table) == len(pictures)
    found = {Path(table.path(row)).stem: row for row in range(len(table))}
    for picture in pictures:
        row = found[picture.stem]
        assert table.sizes[row].tolist() == [picture.height, picture.width] and Path(table.path(row)).is_file()
        objects = table.objects(row)
        assert table.labels[objects].tolist() == [label for label, _ in picture.objects]
        np.testing.assert_allclose(
            table.boxes[objects], np.reshape([box for _, box in picture.objects], (-1, 4)), atol=1e-9
        )
        assert not table.iscrowd[objects].any() and not table.difficult[objects].any()


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_data_set_is_read_as_it_was_meant(dialect: Callable[..., Annotations], seed: int, tmp_path: Path) -> None:
    compare(dialect, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.__name__)
def test_many_data_sets_are_read_as_they_were_meant(dialect: Callable[..., Annotations], tmp_path: Path) -> None:
    for seed in range(100, 125):
        (tmp_path / str(seed)).mkdir()
        compare(dialect, seed, tmp_path / str(seed))
