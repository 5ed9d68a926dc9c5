"""Reads the XML of one image of VOC's layout: encodings, namespaces, and the texts and numbers in it."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.parsers.expat import ErrorString

from grcn.data.faults import Notes, fault, read_bytes
from grcn.data.images import read_header
from grcn.errors import DataError

# Longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""\s*<\?xml\s[^>]*?\bencoding\s*=\s*["']([\w.:-]{1,40})["']""", re.ASCII)
# Text encodings to Python, but not encodings of a document.
_NO_ENCODINGS = {"unicode-escape", "raw-unicode-escape", "idna", "punycode", "utf-7", "undefined"}
_NO_SIDE = ("", "none", "null", "unspecified")
# Tags that tools write for outlines other than upright boxes.
_OUTLINES = ("robndbox", "rotated_bndbox", "polygon", "polyline", "ellipse", "points", "mask")


class _TreeBuilder(ElementTree.TreeBuilder):
    """Builds the tree of a document without a DOCTYPE, so that entities cannot be defined."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("DOCTYPE is not allowed; remove it")


def read_xml(path: Path, notes: Notes) -> ElementTree.Element:
    """Reads a document, in any encoding that it declares and Python knows; namespaces are left out of the tags.

    Raises:
        DataError: it is missing or broken, has a DOCTYPE, or is not in the encoding that it declares.
    """
    data = read_bytes(path, "add the annotation or remove the image from the list")
    try:
        try:
            root = _parse(path, data)
        except (ElementTree.ParseError, LookupError, ValueError):  # expat knows few encodings
            text, other = _decode(path, data)
            root = _parse(path, text)
            if other:
                notes.add("XML files that declare another encoding than theirs", path, other)
    except ElementTree.ParseError as error:
        what = "broken XML (got {}); fix it"
        raise fault(f"{path}:{error.position[0]}", what, ErrorString(error.code)) from None
    spaces = [element.tag[1:].partition("}")[0] for element in root.iter() if element.tag.startswith("{")]
    if spaces:
        notes.add("XML files with a namespace", path, spaces[0])
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    return root


def text_of(element: ElementTree.Element, tag: str, place: str | Path) -> str:
    """Returns the text of a part of an element.

    Raises:
        DataError: it is missing or empty.
    """
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise fault(place, f"<{tag}> is missing or empty; add it")
    return text


def number_of(element: ElementTree.Element, tag: str, place: str | Path) -> float:
    """Returns the number in a part of an element.

    Raises:
        DataError: it is missing, or no number.
    """
    text = text_of(element, tag, place)
    try:
        return float(text)
    except ValueError:
        raise fault(place, f"<{tag}> is no number (got {{}}); fix it", text) from None


def box_of(element: ElementTree.Element, place: str) -> list[float]:
    """Returns the corners of an object as written.

    Raises:
        DataError: one is missing or no number, or there is another outline and no box.
    """
    if element.find("bndbox") is None:
        for tag in _OUTLINES:
            if element.find(tag) is not None:
                raise fault(place, f"no <bndbox>, and <{tag}> is no upright box; export boxes")
    return [number_of(element, f"bndbox/{tag}", place) for tag in ("xmin", "ymin", "xmax", "ymax")]


def check_tags(annotation: ElementTree.Element, path: Path) -> None:
    """Refuses a document whose objects would not be found, since it would pass for an image without any.

    Raises:
        DataError: it is no ``<annotation>``, or has a ``<bndbox>`` that is in no ``<object>`` of it.
    """
    if annotation.tag.lower() != "annotation":
        raise fault(path, "not an annotation (got {}); write <annotation> or remove the file", annotation.tag)
    inside = {id(element) for one in annotation.findall("object") for element in one.iter()}
    for element in annotation.iter():
        if element.tag.lower() in ("object", "bndbox") and id(element) not in inside:
            what = "<{}> is not in an <object> of <annotation>, as VOC writes it; move it there"
            raise fault(path, what.replace("{}", element.tag.replace("{", "").replace("}", "")[:40]))


def size_of(annotation: ElementTree.Element, path: Path, image: Path, notes: Notes) -> tuple[int, int]:
    """Returns (height, width) from ``<size>`` or, if it has none, of the image as displayed.

    Raises:
        DataError: a side is no number of pixels, there is no image to read, or it contradicts the given side.
    """
    height, width = (_side(annotation, tag, path) for tag in ("height", "width"))
    if height and width:
        return height, width
    header = read_header(str(image)) if image.is_file() else None
    if header is None:
        what = "<size> is missing or 0 and there is no image {}; add one of them"
        raise fault(path, what, image.name)
    real = header.displayed_size
    if any(side not in (0, true) for side, true in zip((height, width), real, strict=True)):
        what = "<size> is no size of the image (got {} x {}, not {} x {}); fix it"
        raise fault(path, what, width, height, real[1], real[0])
    notes.add("sizes taken from the image", path, f"{width} x {height}")
    return real


def _side(annotation: ElementTree.Element, tag: str, path: Path) -> int:
    """Returns a side of the image, 0 where none is given."""
    text = (annotation.findtext(f"size/{tag}") or "").strip()
    if text.lower() in _NO_SIDE:
        return 0
    side = number_of(annotation, f"size/{tag}", path)
    if not (side < 2**31 and side.is_integer()):
        raise fault(path, f"<size> is no image size (got {{}} as {tag}); fix it", text)
    return max(int(side), 0)


def _parse(path: Path, data: bytes | str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_TreeBuilder()))
    except DataError as error:
        raise fault(path, str(error)) from None


def _decode(path: Path, data: bytes) -> tuple[str, str | None]:
    """Decodes a document that expat refuses; also returns its declared encoding where that cannot be right."""
    mark, codec = next((known for known in MARKS if data.startswith(known[0])), (b"", "utf-8"))
    head = data[:400].decode(codec, "ignore").encode("ascii", "ignore") if mark else data
    found = _DECLARED.match(head)
    declared = found[1].decode() if found else None
    other = None
    try:
        named = codec if declared is None else codecs.lookup(declared).name
        if named in _NO_ENCODINGS:
            raise LookupError
        # A declaration that can be read byte by byte is in no encoding of two or four of them.
        if mark or named.startswith(("utf-16", "utf-32")):
            other = declared if named != codec.removesuffix("-sig") else None
        else:
            codec = named
        return data.decode(codec), other
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = "not UTF-8 though no encoding is declared; declare it or save as UTF-8"
        if mark or other:
            what = f"not {codec.removesuffix('-sig').upper()} text; save it as UTF-8"
        elif declared is not None:
            what = "not in the encoding it declares (got {}); save it as UTF-8"
        raise fault(f"{path}:{line}", what, declared) from None
    except LookupError:
        raise fault(path, "unknown encoding (got {}); use UTF-8", declared) from None
