"""Names that lead elsewhere, and inputs that are meant to confuse a terminal or to waste memory and time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_data import (
    ANNOTATIONS,
    AT,
    AT_LIST,
    AT_XML,
    CLASS_AT,
    IMAGE_AT,
    JSON,
    LIST,
    OBJECT,
    XML,
    Case,
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
    put,
    replaced,
    xml,
)
from sabotage import limited, without_doctype_checks, without_path_checks

ESCAPE = "\x1b]0;owned\x07\x1b[2J\n\rgrcn: error: another line"
LONG = "/".join(letter * 200 for letter in "def")
PATHS = ["../../outside.jpg", "a/../../../outside.jpg", "/etc/passwd", "..", ".", "", "1.jpg\0.png", "a\nb.jpg", ESCAPE,
         "\udcff.jpg", "\x9b2J.jpg", "x" * 5000]  # fmt: skip


def outside(root: Path) -> None:
    noise().save(root.parent / "outside.jpg")


def moved(folder: str) -> Damage:
    """Moves the data set, in which an annotation has no image, to another folder."""

    def damage(root: Path) -> None:
        put("annotations", 1, "image_id", to=10**15)(root)
        (root.parent / folder).parent.mkdir(parents=True, exist_ok=True)
        root.rename(root.parent / folder)

    return damage


def on_another_disk(root: Path) -> None:
    (root / "train").rename(root.parent / "elsewhere")
    (root / "train").symlink_to("../elsewhere")


def class_name(name: str) -> Damage:
    return put("categories", 1, "name", to=name)


NAMES = [
    *(
        bad(f"file name {path[:30]!r}", both(outside, put("images", 1, "file_name", to=path)),
            IMAGE_AT + "/file_name: not a path below 'train/'", repr(path)[:50])
        for path in PATHS
    ),
    bad("file name of another system", put("images", 1, "file_name", to=r"..\a.jpg"),
        IMAGE_AT + "/file_name: not a path below 'train/'"),
    good("letters of the world", both(
        lambda root: (root / "train/1.jpg").rename(root / "train/Bär 犬 №1.jpg"),
        put("images", 1, "file_name", to="Bär 犬 №1.jpg"), class_name("собака 犬"),
    )),
    good("a folder that is a link", on_another_disk),
    good("an image that is a link", both(
        outside, replaced("train/1.jpg", lambda path: path.symlink_to("../../outside.jpg")),
    )),
    bad("a folder that is a link to nothing", both(
        on_another_disk, lambda root: shutil.rmtree(root.parent / "elsewhere"),
    ), "data/train/0.jpg: no such", "4 of 4"),
    *(
        bad(f"class name {name[:30]!r}", class_name(name), CLASS_AT + "/name: not a class name", repr(name)[:50])
        for name in (ESCAPE, "do\ng", "\ud800", "x" * 10**6)
    ),
    bad("a text of 10 MB for a number", put("annotations", 1, "area", to="x" * 10**7), AT + "/area", "'xxx"),
    bad("a million numbers for one", put("annotations", 1, "bbox", to=[[1] * 10**6] * 4), AT + "/bbox", "[[1, 1"),
    bad("escapes for a number", put("annotations", 1, "image_id", to=ESCAPE), AT + "/image_id", r"'\x1b]0;owned"),
    bad("escapes in a key", contents(JSON, f'{{{json.dumps(ESCAPE)}: 1, {json.dumps(ESCAPE)}: 2}}'),
        f"{ANNOTATIONS}: bad JSON", r"\x1b]0;owned"),
    bad("100,000 brackets", contents(JSON, "[" * 10**5), f"{ANNOTATIONS}: bad JSON", patch=limited),
    bad("100,000 braces", contents(JSON, '{"a":' * 10**5), f"{ANNOTATIONS}: bad JSON", patch=limited),
    bad("a folder with escapes", moved("a\x1b]0;b\nc"), r"a\x1b]0;b\nc/annotations",
        settings=[r'data.root="a\e]0;b\nc"']),
    bad("a path of 600 letters", moved(LONG), "ddd", "…", "fff/annotations", "fix it", settings=[f"data.root={LONG}"]),
]  # fmt: skip

LAUGHS = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12))
DOCTYPES = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY e0 "ha">{LAUGHS}]><a>&e11;</a>',
    "one long entity, often": f'<!DOCTYPE a [<!ENTITY e "{"x" * 10**5}">]><a>{"&e;" * 10**5}</a>',
    "an entity from a file": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
    "an entity from the net": '<!DOCTYPE a [<!ENTITY % e SYSTEM "http://127.0.0.1:9/a.dtd">%e;]><a/>',
    "a definition without end": '<!DOCTYPE a SYSTEM "file:///dev/zero"><a/>',
    "defaults of attributes": '<!DOCTYPE a [<!ATTLIST a b CDATA "x">]><a/>',
}
NAMES_VOC = [
    *(
        bad(f"image name {name[:30]!r}", contents(LIST, f"0\n{name}\n"), AT_LIST + "2: not an image name")
        for name in ("../1", "/etc/passwd", "..", "1\0", "1\x1b]0;x", "x" * 2000)
    ),
    good("a <filename> that is not read", xml("<size>", "<filename>../../../etc/passwd</filename><size>")),
    *(
        bad(f"{name}, {encoding}", contents(XML, text.encode(encoding)), AT_XML + "DOCTYPE is not", patch=limited)
        for name, text in DOCTYPES.items() for encoding in ("utf-8", "utf-16")
    ),
    bad("100,000 tags in each other", contents(XML, "<a>" * 10**5), f"data/{XML}:1: broken XML", patch=limited),
    bad("an attribute twice", contents(XML, "<a b='' b=''/>"), f"data/{XML}:1: broken XML"),
    bad("a class name of two lines", xml("<name>dog", "<name>do\ng"), OBJECT + "<name>: not a class name", r"'do\ng'"),
    bad("a class name with an escape", xml("<name>dog", "<name>&#x9b;2J"), OBJECT + "<name>: not a class", r"\x9b2J"),
    bad("a flag with an escape", xml("<difficult>0", "<difficult>&#x9b;2J"), OBJECT + "<difficult>", r"\x9b2J"),
    bad("an escape", xml("<name>dog", "<name>\x1b[2J"), f"data/{XML}:4: broken XML"),
]  # fmt: skip


FAMILIES = {"names and attacks, COCO": ("coco", NAMES), "names and attacks, VOC": ("voc", NAMES_VOC)}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_attacks(tmp_path: Path, faults: int, record_property: Record, family: str) -> None:
    record_property("faults", check_all(family, *FAMILIES[family], tmp_path, faults))


@pytest.mark.parametrize(("layout", "cases"), FAMILIES.values(), ids=FAMILIES)
def test_a_long_path_stays_whole(tmp_path: Path, layout: str, cases: list[Case]) -> None:
    check_long_path(layout, cases, tmp_path, JSON if layout == "coco" else XML)


@pytest.mark.parametrize(
    ("family", "name", "guard"),
    [
        ("names and attacks, COCO", "file name '../../outside.jpg'", without_path_checks),
        ("names and attacks, VOC", "defaults of attributes, utf-8", without_doctype_checks),
    ],
)
def test_without_a_guard_the_check_fails(tmp_path: Path, family: str, name: str, guard: Callable[[], None]) -> None:
    layout, cases = FAMILIES[family]
    with pytest.raises(AssertionError, match="expected 3|does not name"):
        check_without(guard, cases, name, layout, tmp_path)
