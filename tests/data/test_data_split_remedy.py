"""Messages about data that are not where the settings say: they name the folder or the splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from grcn import build
from grcn.config.files import dump_config, parse_config
from grcn.config.schema import FilesDataConfig
from grcn.data import coco, voc
from grcn.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with VOC's layout in ``VOCdevkit/`` and COCO's in ``{coco}/``, by a short path: long ones are cut."""
    monkeypatch.chdir(tmp_path)
    root = Path("d")
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    for name in ("trainval", "test", "dog_test"):
        (lists / f"{name}.txt").write_text("1\n")
    (root / "{coco}/annotations").mkdir(parents=True)
    (root / "{coco}/annotations/instances_val.json").write_text("{}")
    return root


def remedy_of(reader, root, split):
    with pytest.raises(DataError) as caught:
        reader.load(root, [split])
    before, _, remedy = str(caught.value).partition("; ")
    assert before.endswith(f"no such file, nor XML in '{split}/'" if reader is voc else "no such file")
    return remedy


def test_one_folder_too_high(folder):
    devkit = folder / "VOCdevkit"
    assert remedy_of(voc, folder, "VOC2007/test") == f"VOCdevkit/ is below it: set data.root={devkit}"
    assert remedy_of(coco, folder, "val") == f"{{coco}}/ is below it: set data.root={folder / '{coco}'}"


def test_one_folder_too_low(folder):
    higher = "the data are one folder higher: set data.root="
    assert remedy_of(voc, folder / "VOCdevkit/VOC2007", "VOC2007/test") == f"{higher}{folder / 'VOCdevkit'}"
    assert remedy_of(coco, folder / "{coco}/annotations", "val") == f"{higher}{folder / '{coco}'}"


def test_the_splits_that_there_are(folder):
    usual = "set data.root and the splits to what exists"
    assert remedy_of(voc, folder / "VOCdevkit", "trainval") == f"{usual} (found VOC2007/trainval)"
    assert remedy_of(voc, folder / "VOCdevkit", "VOC2007/val") == f"{usual} (found VOC2007/test, VOC2007/trainval)"
    assert remedy_of(coco, folder / "{coco}", "train") == f"{usual} (found val)"
    assert remedy_of(voc, folder / "nowhere", "VOC2007/test") == usual


def test_folders_without_a_list_where_there_are_no_lists(tmp_path):
    for name in ("b/Annotations/1.xml", "a/2.xml", "a/.hidden/3.xml", "__MACOSX/4.xml", "c/d/annotations/5.XML"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write = "write it, or name a folder with XML (found 'a, b, c/d')"
    assert remedy_of(voc, tmp_path, "b/train") == write
    with pytest.raises(DataError, match=r"no XML in it, nor in Annotations/; .*found 'a, b, c/d'"):
        voc.load(tmp_path, ["."])
    (tmp_path / "b/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "b/ImageSets/Main/train.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"/b: this folder has lists; name one .* \(found 'b/train'\)"):
        voc.load(tmp_path, ["b"])
    (tmp_path / "b/ImageSets/Main/train.txt").rename(tmp_path / "b/ImageSets/Main/cup_train.txt")
    assert remedy_of(voc, tmp_path, "b/train").endswith("(found b/cup_train)")


def config(root):
    return FilesDataConfig(format="voc", root=root, train=("VOC2007/trainval",), test=("VOC2007/test",))


def test_a_tilde_is_the_home_and_stays_in_the_config(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "VOCdevkit/VOC2007/Annotations").mkdir()
    annotation = "<annotation><size><width>9</width><height>9</height></size></annotation>"
    (folder / "VOCdevkit/VOC2007/Annotations/1.xml").write_text(annotation)
    cfg = config("~/VOCdevkit")
    table = build.read_annotations(cfg, "test", None)
    assert Path(table.path(0)).parent == folder / "VOCdevkit/VOC2007/JPEGImages"
    text = "data: {format: voc, root: ~/VOCdevkit, train: [a], test: [a]}\ntrain: {steps: 1}"
    kept = parse_config(dump_config(parse_config(text, "c")), "c")
    assert kept.data.root == "~/VOCdevkit" and kept.data.folder == str(folder / "VOCdevkit")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("https://a.org/b.zip", "an address, not a folder (got 'https://a.org/b.zip'); download the data and set"),
        (
            r"C:\Users\me\data",
            r"(got 'C:\\Users\\me\\data'); set it to the folder here, as /mnt/c/Users/me/data in WSL",
        ),
        (
            "d:/data",
            "a Windows path, invalid on this machine (got 'd:/data'); set it to the folder here, as /mnt/d/d",
        ),
        ("~/nowhere", "no such folder (got '~/nowhere'); set it to the folder of the data"),
        ("a:b", "no such folder (got 'a:b'); set it"),
    ],
)
def test_what_is_no_folder_here_gets_the_right_advice(root, expected):
    with pytest.raises(DataError) as caught:
        build.read_annotations(config(root), "test", None)
    assert str(caught.value).startswith("data.root: ") and expected in str(caught.value)
