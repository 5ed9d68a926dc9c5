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
    before, _, remedy = str(caught.value).partition("; ")
    assert before.endswith(f"no such file, nor XML in '{split}/'" if reader is voc else "no such file")
    return remedy


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


def test_folders_without_a_list_where_there_are_no_lists(tmp_path):
    for name in ("b/Annotations/1.xml", "a/2.xml", "a/.hidden/3.xml", "__MACOSX/4.xml", "c/d/annotations/5.XML"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write = "write it, or name a folder with XML (found 'a, b, c/d')"
    assert told(voc, tmp_path, "b/train") == write
    with pytest.raises(DataError, match=r"no XML in it, nor in Annotations/; .*found 'a, b, c/d'"):
        voc.load(tmp_path, ["."])
    (tmp_path / "b/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "b/ImageSets/Main/train.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"/b: this folder has lists; name one .* \(found 'b/train'\)"):
        voc.load(tmp_path, ["b"])
    (tmp_path / "b/ImageSets/Main/train.txt").rename(tmp_path / "b/ImageSets/Main/cup_train.txt")
    assert told(voc, tmp_path, "b/train").endswith("(found b/cup_train)")
