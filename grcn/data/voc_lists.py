"""Finds the images of a split in VOC's layout: those in its list, or in its folder where there is no list."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from grcn.data.faults import (
    USUAL_REMEDY,
    Fault,
    Notes,
    Report,
    fault,
    is_contained,
    read_bytes,
    split_remedy,
    tell,
)
from grcn.data.voc_folders import (
    ANNOTATIONS,
    IMAGE_SUFFIXES,
    IMAGES,
    XML_SUFFIXES,
    Source,
    elsewhere,
    folders_with_annotations,
    has_lists,
    source_of,
)
from grcn.data.voc_xml import MARKS

_FLAG = re.compile(r"(.*\S)\s+(?:1|0|-1)", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\s+(?:1|0|-1))?|\'([^\']*)\'(?:\s+(?:1|0|-1))?')


def find_split(root: Path, split: str, report: Report | None, notes: Notes) -> Source:
    """Finds the images of a split: those that ``ImageSets/Main`` lists, or else those in the folder of its name.

    Args:
        report: called with the fault of every wrong line and file name; without it, the first one is an error.
        notes: counts what is read as it was meant.

    Raises:
        DataError: there is neither list nor folder, or it names no image.
    """
    if split != "." and not is_contained(split):
        raise fault(root, "a split leads out of it (got {}); give a path below it", split)
    path = root / _list_of(split)
    if not os.path.lexists(path):
        source = source_of(root, split)
        if source.annotations.names() and not has_lists(root / split):
            _read_folder(source, report, notes)
            return source
        raise _nothing_found(root, split)
    source = source_of(root, str(PurePosixPath(split).parent))
    for files, usual in ((source.annotations, ANNOTATIONS[0]), (source.images, IMAGES[0])):
        if files.folder.name != usual:
            notes.add("folders with other names than in VOC", files.folder, f"not {usual}")
    _read_list(source, path, report, notes)
    return source


def lines_of(path: Path, remedy: str = USUAL_REMEDY, notes: Notes | None = None) -> list[str]:
    """Reads a text file; the message about one that cannot be read ends in ``remedy``.

    Args:
        notes: counts files in UTF-16 that begin with its mark; without it they are refused.

    Raises:
        DataError: it is missing, cannot be read or is not UTF-8.
    """
    data = read_bytes(path, remedy)
    codec = next((codec for mark, codec in MARKS if data.startswith(mark)), "utf-8-sig")
    if notes is None:
        codec = "utf-8-sig"
    try:
        lines = data.decode(codec).splitlines()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        name = codec.removesuffix("-sig").upper()
        raise fault(f"{path}:{line}", f"not {name} text; convert the file") from None
    if notes is not None and codec != "utf-8-sig":
        notes.add(f"lists in {codec.upper()}", path, lines[0] if lines else "")
    return lines


def _list_of(split: str) -> Path:
    """Returns the path of a split's list, below the root."""
    return Path(split).parent / "ImageSets" / "Main" / f"{PurePosixPath(split).name}.txt"


def _read_folder(source: Source, report: Report | None, notes: Notes) -> None:
    """Takes every annotation of a folder as an image of the split."""
    found = source.annotations.names()
    notes.add("splits read from a folder without a list", source.annotations.folder, f"{len(found)} XML files")
    for name in found:
        if is_contained(name):
            source.names.append(name)
        else:
            place = source.annotations.folder
            tell(report, fault(place, "not an image name (got {}); rename the file", name, kind="list"))
    for path in elsewhere(source.annotations):
        notes.add("XML files in other places of the folder, left out", path, path.name)
    for name in source.images.names():
        if name not in source.annotations:
            notes.add("images without an XML, left out", source.images.path(name), f"no {name}.xml")
    if not source.names:
        raise fault(source.annotations.folder, "no XML names an image; rename them or use another split")


def _read_list(source: Source, path: Path, report: Report | None, notes: Notes) -> None:
    lines: dict[str, int] = {}
    for line, text in enumerate(lines_of(path, notes=notes), start=1):
        if not text.strip():
            continue
        place = f"{path}:{line}"
        try:
            name, as_written = _name_in(source, text.strip(), place)
            if name in lines:
                what = "listed before (got {} as in line {}); remove it"
                raise fault(place, what, name, lines[name], kind="list")
            if not as_written:
                notes.add("names in lists with quotes, folders or suffixes", place, text)
        except Fault as found:
            tell(report, found)
            continue
        lines[name] = line
    source.names.extend(lines)
    if not lines:
        raise fault(path, "the list names no image; add images or use another split")


def _name_in(source: Source, text: str, place: str) -> tuple[str, bool]:
    """Returns the image that a line names, and whether it is written as VOC writes it.

    A whole line takes precedence: ``photo 1`` is not ``photo`` with a flag if there is a ``photo 1``.
    """
    flagged = _FLAG.fullmatch(text)
    short = flagged[1] if flagged else text
    for written in (text, short):
        plain = is_contained(written) and written == str(PurePosixPath(written))
        if plain and (written in source.annotations or written in source.images):
            return written, True
    leads_out = ".." in re.split(r"[/\\]", text)
    for written in () if leads_out else (text, short):
        for path, form in _forms(written):
            if form in source.annotations or form in source.images:
                _check_path(source, path, form, place)
                return form, False
    if leads_out or not is_contained(short) or len(short.split()) > 1:
        what = "not an image name (got {}) and no XML is called so; fix the line"
        raise fault(place, what, text, kind="list")
    return (os.path.splitext(short)[0] if _is_image(short) else short), True


def _forms(text: str) -> Iterator[tuple[str, str]]:
    """Yields the path in a line with each name that it may mean, without suffix and folders, longest first."""
    quoted = _QUOTED.fullmatch(text)
    inner = (quoted[1] or quoted[2] or "") if quoted else text
    for written in dict.fromkeys((re.sub(r'\\(["\\])', r"\1", inner) if quoted else inner, inner)):
        parts = [part for part in re.split(r"[/\\]+", written) if part not in ("", ".")]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            stem, suffix = os.path.splitext(tail)
            for form in (tail, stem) if suffix.lower() in (*IMAGE_SUFFIXES, *XML_SUFFIXES) else (tail,):
                if is_contained(form):
                    yield "/".join(parts), form


def _check_path(source: Source, path: str, name: str, place: str) -> None:
    """Refuses a path to one image where the name without its folders is that of another."""
    image, folder = source.images.path(name), source.images.folder
    bases = (folder, folder.parent, folder.parent.parent) if "/" in path else (folder,)
    files = [path] if _is_image(path) else [f"{path}{suffix}" for suffix in IMAGE_SUFFIXES]
    for other in (base / file for base in bases for file in files if is_contained(file)):
        if other.is_file() and not (image.is_file() and other.samefile(image)):
            what = "a path to another image than {} (got {}); write its XML's name"
            raise fault(place, what, f"{folder.name}/{image.name}", path, kind="list")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _nothing_found(root: Path, split: str) -> Fault:
    """Reports what was looked for, and what there is instead."""
    if has_lists(root / split):
        what = "this folder has lists; name one of them as the split (found {})"
        return fault(root / split, what, _some(_lists(root, glob.escape(str(PurePosixPath(split))))))
    remedy = split_remedy(root, _list_of(split), split, _lists(root, "") + _lists(root, "*"))
    folders = folders_with_annotations(root) if remedy == USUAL_REMEDY else []
    name_one = "name a folder with XML (found {})"
    if not PurePosixPath(split).name:
        what = f"no XML in it, nor in {ANNOTATIONS[0]}/; {name_one if folders else remedy}"
        return fault(root, what, _some(folders))
    what = f"no such file, nor XML in {{}}; {f'write it, or {name_one}' if folders else remedy}"
    return fault(root / _list_of(split), what, f"{PurePosixPath(split)}/", _some(folders))


def _lists(root: Path, folder: str) -> list[str]:
    """Returns the splits of the lists in a folder, or in all of a pattern."""
    paths = sorted(root.glob(str(PurePosixPath(folder) / "ImageSets/Main/*.txt")))
    # The lists per class, dog_train, are named only where there are no others.
    paths = [path for path in paths if "_" not in path.stem] or paths
    return [str(path.relative_to(root).parents[2] / path.stem) for path in paths]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
