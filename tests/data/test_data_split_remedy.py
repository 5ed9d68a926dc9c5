"""Where the data are when they are not where the settings say: the message names the folder or the splits."""

from __future__ import annotations

import pytest

from grcn.data import coco, voc
from grcn.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder with VOC's layout in ``VOCdevkit/`` and COCO's in ``{coco}/``."""
    lists = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    for name in ("trainval", "test", "dog_test"):
        (lists / f"{name}.txt").write_text("1\n")
    (tmp_path / "{coco}/annotations").mkdir(parents=True)
    (tmp_path / "{coco}/annotations/instances_val.json").write_text("{}")
    return tmp_path


def told(reader, root, split):
    with pytest.raises(DataError) as caught:
        reader.load(root, [split])
    return str(caught.value).partition("no such file; ")[2]


def test_one_folder_too_high(folder):
    devkit = folder / "VOCdevkit"
    assert told(voc, folder, "VOC2007/test") == f"VOCdevkit/ is below it: set data.root={devkit}"
    assert told(coco, folder, "val") == f"{{coco}}/ is below it: set data.root={folder / '{coco}'}"


def test_one_folder_too_low(folder):
    higher = "the data are one folder higher: set data.root="
    assert told(voc, folder / "VOCdevkit/VOC2007", "VOC2007/test") == f"{higher}{folder / 'VOCdevkit'}"
    assert told(coco, folder / "{coco}/annotations", "val") == f"{higher}{folder / '{coco}'}"


def test_the_splits_that_there_are(folder):
    usual = "set data.root and the splits to what exists"
    assert told(voc, folder / "VOCdevkit", "trainval") == f"{usual} (found VOC2007/trainval)"
    assert told(voc, folder / "VOCdevkit", "VOC2007/val") == f"{usual} (found VOC2007/test, VOC2007/trainval)"
    assert told(coco, folder / "{coco}", "train") == f"{usual} (found val)"
    assert told(voc, folder / "nowhere", "VOC2007/test") == usual
