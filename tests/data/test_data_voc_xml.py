"""VOC's XML as annotation tools write it: sizes, encodings, namespaces and outlines."""

from __future__ import annotations

import pytest
from PIL import Image
from voc_files import BOX, OBJECT, annotation, listed, pair, picture, text

from grcn.data import voc
from grcn.data.faults import Notes
from grcn.data.images import FileImages
from grcn.errors import DataError

FROM_IMAGE = "sizes taken from the image"


@pytest.mark.parametrize(
    "size",
    [
        "", "<size/>", "<size><width>0</width><height>0</height></size>", "<size><width>40</width></size>",
        "<size><width>40</width><height>0</height></size>", "<size><width>-1</width><height>-1</height></size>",
        "<size><width>None</width><height/></size>", "<size><w>40</w><h>30</h></size>", "<imagesize>40</imagesize>",
    ],
)  # fmt: skip
def test_a_size_that_is_not_said_is_the_images(tmp_path, size):
    pair(tmp_path / "mine", "a")
    text(tmp_path / "mine/Annotations/a.xml", annotation(size=size))
    assert listed(tmp_path, "a\n") == (["a"], {FROM_IMAGE: 1})
    (tmp_path / "mine/JPEGImages/a.jpg").write_text("<html>")
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.xml: <size> is missing or 0 and there is no image 'a\.jpg'; add"):
            listed(tmp_path, "a\n")
        (tmp_path / "mine/JPEGImages/a.jpg").unlink(missing_ok=True)


def test_the_size_is_that_of_the_image_as_displayed(tmp_path):
    pair(tmp_path / "mine", "a")
    path = tmp_path / "mine/Annotations/a.xml"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "mine/JPEGImages/a.jpg", (30, 40), exif=turned)
    path.write_text(annotation(size=""))
    text(tmp_path / "mine/ImageSets/Main/train.txt", "a\n")
    table = voc.load(tmp_path, ["mine/train"])
    assert table.sizes.tolist() == [[30, 40]] and FileImages(table)(0).shape == (3, 30, 40)
    path.write_text(annotation(size="<size><width>400</width><height>0</height></size>"))
    with pytest.raises(DataError, match=r"no size of the image \(got 400 x 0, not 40 x 30\)"):
        voc.load(tmp_path, ["mine/train"])
    path.write_text("<project><name>x</name></project>")
    with pytest.raises(DataError, match=r"a\.xml: not an annotation \(got 'project'\)"):
        voc.load(tmp_path, ["mine/train"])


@pytest.mark.parametrize("declared", ["gbk", "GB18030", "cp936", "big5", "shift_jis", "euc-kr", "cp1252", "koi8-r",
                                      "windows-1251", "iso-8859-15", "utf-16", "utf-32", "utf-8"])  # fmt: skip
def test_declared_encodings(tmp_path, declared):
    names = {"gbk": "杯子", "GB18030": "杯子", "cp936": "杯子", "big5": "杯子", "shift_jis": "猫", "euc-kr": "컵"}
    name = names.get(declared, {"cp1252": "tasse é€", "iso-8859-15": "é€"}.get(declared, "чашка"))
    pair(tmp_path / "mine", "a")
    text(tmp_path / "mine/ImageSets/Main/train.txt", "a\n")
    path, body = tmp_path / "mine/Annotations/a.xml", annotation().replace("cup", name)
    path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>\n{body}'.encode(declared))
    notes = Notes(strict=True)
    assert voc.load(tmp_path, ["mine/train"], notes=notes).classes == (name,)
    entity = f'<?xml version="1.0" encoding="{declared}"?><!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>'
    path.write_bytes(entity.encode(declared))
    with pytest.raises(DataError, match=r"a\.xml: DOCTYPE is not allowed"):
        voc.load(tmp_path, ["mine/train"])


BODY = annotation().replace("cup", "杯子")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BODY.encode("gbk"), "a.xml:1: not UTF-8 though no encoding is declared"),
        (f'<?xml version="1.0"?>\n{BODY}'.encode("gbk"), "a.xml:2: not UTF-8 though no encoding is declared"),
        (f'<?xml version="1.0" encoding="utf-8"?>\n{BODY}'.encode("gbk"), "a.xml:2: not in the encoding it declares"),
        (
            f'<?xml version="1.0" encoding="gbk"?>{BODY}'.encode(),
            "a.xml:1: not in the encoding it declares (got 'gbk')",
        ),
        (f'<?xml version="1.0" encoding="klingon"?>{BODY}'.encode(), "a.xml: unknown encoding (got 'klingon')"),
        (f'<?xml version="1.0" encoding="hex"?>{BODY}'.encode(), "a.xml: unknown encoding (got 'hex')"),
        (f'<?xml version="1.0" encoding="utf-7"?>{BODY}'.encode(), "a.xml:"),
    ],
)
def test_encodings_that_are_not_declared_or_wrong(tmp_path, data, message):
    pair(tmp_path / "mine", "a")
    text(tmp_path / "mine/Annotations/a.xml", data)
    with pytest.raises(DataError) as error:
        listed(tmp_path, "a\n")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        f'<?xml version="1.0" encoding="utf-16"?>{annotation()}'.encode(),
        f'<?xml version="1.0" encoding="utf-8"?>{annotation()}'.encode("utf-16"),
        f'<?xml version="1.0" encoding="gbk"?>{annotation("<!-- é -->" + OBJECT)}'.encode("utf-8-sig"),
    ],
)
def test_a_declaration_that_cannot_be(tmp_path, data):
    pair(tmp_path / "mine", "a")
    text(tmp_path / "mine/Annotations/a.xml", data)
    assert listed(tmp_path, "a\n") == (["a"], {"XML files that declare another encoding than theirs": 1})


def test_namespaces_are_left_out(tmp_path):
    pair(tmp_path / "mine", "a", "b", "c")
    folder, plain = tmp_path / "mine/Annotations", annotation()
    (folder / "a.xml").write_text(plain.replace("<annotation", '<annotation xmlns="http://example.org/voc"'))
    prefixed = plain.replace("</", "</v:").replace("<", "<v:").replace("<v:/v:", "</v:")
    (folder / "b.xml").write_text(prefixed.replace("<v:annotation", '<v:annotation xmlns:v="urn:voc"'))
    (folder / "c.xml").write_text(plain.replace("<object", '<object xmlns="urn:c"'))
    assert listed(tmp_path, "a\nb\nc\n") == (["a", "b", "c"], {"XML files with a namespace": 3})


@pytest.mark.parametrize("tag", ["polygon", "robndbox", "ellipse"])
def test_an_outline_without_a_box_is_named(tmp_path, tag):
    pair(tmp_path / "mine", "a")
    outline = f"<{tag}><x1>3</x1><y1>4</y1></{tag}>"
    text(tmp_path / "mine/Annotations/a.xml", annotation(OBJECT.replace(BOX, outline)))
    with pytest.raises(DataError, match=rf"a\.xml: object 1: no <bndbox>, and <{tag}> is no upright box; exp"):
        listed(tmp_path, "a\n")
    text(tmp_path / "mine/Annotations/a.xml", annotation(OBJECT.replace(BOX, outline + BOX)))
    assert listed(tmp_path, "a\n") == (["a"], {})
