"""Findings on a data set: the kinds of errors and oddities, and the checks that need only its table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grcn.data.annotations import Annotations
from grcn.data.faults import Fault, Notes
from grcn.errors import one_line

MOST_EXAMPLES = 20
RARE = 10  # objects in the training splits

# Every kind of finding: its severity, what is counted, and the fix. Errors end a training run, warnings cost accuracy
# or make a result doubtful, notes are good to know.
KINDS = {
    "list": ("error", "lines of lists that name no image, or one again", "fix the list"),
    "annotation": ("error", "annotations that cannot be used", "fix what is named"),
    "class-unknown": ("error", "uses of classes that are not listed", "rename them or set data.classes"),
    "box-not-finite": ("error", "boxes that are not finite", "fix them"),
    "box-reversed": ("error", "boxes that end before they begin", "swap corners, or store corners and not sizes"),
    "box-outside": ("error", "boxes outside their image", "check whether x and y are swapped, or the image is another"),
    "image-missing": ("error", "images that do not exist", "add them or set data.root"),
    "image-broken": ("error", "images that cannot be read", "replace them"),
    "image-large": ("error", "images of over 100 megapixels", "shrink them"),
    "image-size": ("error", "images that are not of the annotated size", "annotate them again, as displayed"),
    "objects-none": ("error", "objects that count", "add annotations"),
    "box-empty": ("warning", "boxes without width or height, which are left out", "remove them"),
    "box-clipped": ("warning", "boxes that stick out of their image, which are clipped", "fix them"),
    "box-one-off": (
        "warning",
        "boxes that stick out of their image by exactly one pixel",
        "shift all: VOC counts pixels from 1, COCO from 0",
    ),
    "box-relative": ("warning", "boxes under 2 pixels, nearly all", "store pixels, not shares of the image"),
    "box-duplicate": ("warning", "objects with class and box of another one in their image", "remove them"),
    "box-small": ("warning", "boxes much smaller than a cell of the network's map", "raise model.image.short"),
    "box-whole": ("note", "boxes of a whole image", "check whether they should be"),
    "image-small": ("warning", "images with a side under 32 pixels", "check whether they are thumbnails"),
    "image-rotated": (
        "warning",
        "images that are turned when read, by their EXIF orientation",
        "make sure that boxes are of the turned image",
    ),
    "image-mode": (
        "note",
        "images that are not RGB",
        "nothing to do if grey may be repeated, alpha dropped and 16 bits made 8",
    ),
    "image-dark": (
        "warning",
        "images that are dark when read",
        "set data.bits to how many of 16 bits grey ones use, or brighten them",
    ),
    "image-duplicate": ("warning", "images that are copies of another one in their split", "remove them"),
    "image-leak": ("warning", "test images that are training images too", "remove them: results on them mean little"),
    "image-empty": ("note", "images without an object to train on", "see data.drop_empty"),
    "class-unused": ("warning", "classes without any object", "let data.classes name those that occur in any split"),
    "class-rare": ("warning", f"classes with under {RARE} objects to train on", "add some or merge classes"),
    "class-test-only": ("warning", "classes that only the test splits have", "fix the splits: they cannot be learnt"),
    "class-similar": ("warning", "names of classes that differ in case or signs only", "make them one"),
    "class-balance": (
        "note",
        "classes of which one has over 100 times the objects of another",
        "expect little of the rare ones",
    ),
    "crowd": ("note", "crowd regions", "nothing to do: neither trained on nor counted"),
    "difficult": ("note", "difficult objects", "nothing to do: neither trained on nor counted"),
    "normalised": ("note", "read as meant", "nothing to do, or set data.strict=true to refuse them"),
    "anchors-none": (
        "warning",
        "objects to train on that no anchor overlaps which lies inside their image",
        "set model.rpn.straddling=true, or smaller model.anchors.sizes",
    ),
    "anchors": ("note", "objects to train on without an anchor of IoU 0.5", "try other anchors"),
    "anchors-half": (
        "warning",
        "objects to train on without an anchor of IoU 0.5, over half of all: the model can hardly learn",
        "try other anchors",
    ),
    "cell-half": (
        "warning",
        "objects to train on under half a cell of the network's map, over half of all: the model can hardly learn",
        "raise model.image.short",
    ),
}


@dataclass(frozen=True)
class Example:
    """One case of a finding.

    Attributes:
        place: the file or another location, and what is wrong there.
        image: path of the image below the folder of the data set; empty where it is none or no file.
        row: the image's row in the table, -1 where it is in none.
        object: number of the object among those of its image in the table, from 1; 0 where it is in none.
        box: absolute xyxy in the image's own pixels.
    """

    place: str
    image: str = ""
    row: int = -1
    object: int = 0
    box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of fault or oddity of a split, with a few of its cases.

    Attributes:
        severity: ``error``, ``warning`` or ``note``.
        kind: a key of :data:`KINDS`.
        split: ``train`` or ``test``.
        count: number of cases.
        text: one line, with the fix.
        examples: the first cases, at most :data:`MOST_EXAMPLES`.
    """

    severity: str
    kind: str
    split: str
    count: int
    text: str
    examples: tuple[Example, ...] = ()


def finding(
    kind: str, split: str, count: int, examples: Iterable[Example] = (), more: str = "", remedy: str = ""
) -> Finding:
    """Makes a finding of a kind; ``more`` follows the count in brackets, ``remedy`` replaces the usual one."""
    severity, what, usual = KINDS[kind]
    text = one_line(f"{what}: {count}{f' ({more})' * bool(more)}; {remedy or usual}")
    return Finding(severity, kind, split, count, text, tuple(examples)[:MOST_EXAMPLES])


@dataclass
class FaultCounter:
    """Counts the faults that a reader reports, by kind, and keeps the first of each; a ``Report``."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def __call__(self, fault: Fault) -> None:
        self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
        kept = self.examples.setdefault(fault.kind, [])
        if len(kept) < MOST_EXAMPLES:
            kept.append(Example(str(fault), fault.image, box=fault.box))

    def findings(self, split: str, objects: int = 0) -> list[Finding]:
        """Returns a finding for each kind; ``objects`` is their total number, to see faults that most of them share."""
        hint = {"box-clipped": "more than half: are corners stored as sizes?"}
        return [
            finding(kind, split, count, self.examples[kind], hint.get(kind, "") if 2 * count > objects > 0 else "")
            for kind, count in self.counts.items()
        ]


def notes_as_findings(notes: Notes, split: str) -> list[Finding]:
    """Returns a finding for each kind of value that a reader read as it was meant."""
    return [
        finding("normalised", split, count, [Example(place) for place in notes.places[kind]], kind)
        for kind, count in notes.counts.items()
    ]


def check_tables(
    train: Annotations | None,
    test: Annotations | None,
    *,
    short: int,
    longest: int,
    stride: int,
    drop_empty: bool = True,
) -> list[Finding]:
    """Finds faults in the annotations without reading images; 100,000 objects take a tenth of a second.

    Args:
        short, longest: of the network's input, as ``model.image.short`` and ``max``.
        stride: input pixels per cell of the finest map from which proposals come.
        drop_empty: whether images without objects are left out of training.
    """
    found = []
    for table, split in ((train, "train"), (test, "test")):
        if table is not None and len(table):
            found += check_images_of(table, split) + check_boxes(table, split, short, longest, stride)
    return found + (check_classes(train, test) if train is not None else [])


def check_boxes(table: Annotations, split: str, short: int, longest: int, stride: int) -> list[Finding]:
    """Finds boxes that repeat, cover their whole image, or vanish in the network; arguments as in `check_tables`."""
    rows = rows_of(table)
    sizes = table.sizes.astype(float)
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    scales = np.minimum(short / sizes.min(axis=1), longest / sizes.max(axis=1))
    seen = np.sqrt(sides.prod(axis=1)) * scales[rows]
    whole = (np.abs(sides - sizes[rows][:, ::-1]) < 1).all(axis=1)
    tiny = (sides < 2).all(axis=1)
    masks = {
        "box-duplicate": _repeats(rows, table),
        "box-small": seen < stride / 2,
        "box-whole": whole,
        "box-relative": tiny & (10 * tiny.sum() > 9 * len(tiny)),
    }
    more = {"box-small": f"under {stride / 2:g} of its pixels, where a cell has {stride}"}
    found = [
        finding(kind, split, int(mask.sum()), _examples(table, rows, mask), more.get(kind, ""))
        for kind, mask in masks.items()
        if mask.any()
    ]
    few = len(rows) // 100  # too few for a warning
    capped = longest / sizes.max(axis=1) < short / sizes.min(axis=1)
    for number, one in enumerate(found):
        if one.kind == "box-small":
            cap = " and model.image.max, which caps the size" if capped[rows][masks["box-small"]].any() else ""
            severity = "note" if one.count < few else one.severity
            found[number] = replace(one, severity=severity, text=one.text + cap)
    return found


def check_images_of(table: Annotations, split: str) -> list[Finding]:
    """Finds images that are small or have no object, and objects that do not count."""
    counted = ~(table.iscrowd | table.difficult)
    per_image = np.diff(np.append(0, np.cumsum(counted))[table.offsets])
    found = []
    for kind, rows in (
        ("image-small", np.flatnonzero(table.sizes.min(axis=1) < 32)),
        ("image-empty", np.flatnonzero(per_image == 0)),
    ):
        if len(rows):
            found.append(finding(kind, split, len(rows), images_at(table, rows)))
    for kind, mask in (("crowd", table.iscrowd), ("difficult", table.difficult)):
        if mask.any():
            found.append(finding(kind, split, int(mask.sum()), _examples(table, rows_of(table), mask)))
    if not counted.any():
        found.append(finding("objects-none", split, 0, [Example(table.name)]))
    return found


def check_classes(train: Annotations, test: Annotations | None) -> list[Finding]:
    """Finds classes with few objects to train on, or with none, and names that look alike."""
    counts = class_counts(train)
    tested = class_counts(test) if test is not None and test.classes == train.classes else np.zeros_like(counts)
    absent = counts == 0
    cases = {
        "class-unused": absent & (tested == 0),
        "class-test-only": absent & (tested > 0),
        "class-rare": (counts > 0) & (counts < RARE),
    }
    found = []
    for kind, mask in cases.items():
        if mask.any() and not absent.all():
            names = [f"{train.classes[k]} {counts[k] or tested[k]}" for k in np.flatnonzero(mask)]
            found.append(finding(kind, "train", len(names), map(Example, names), _some(names)))
    keys: dict[str, list[str]] = {}
    for name in train.classes:
        keys.setdefault("".join(filter(str.isalnum, name.casefold())), []).append(name)
    alike = [", ".join(names) for key, names in keys.items() if key and len(names) > 1]
    if alike:
        found.append(finding("class-similar", "train", len(alike), map(Example, alike), _some(alike)))
    present = counts[~absent]
    if len(present) and present.max() > 100 * present.min():
        most, least = train.classes[int(counts.argmax())], train.classes[int(np.where(absent, np.inf, counts).argmin())]
        more = f"{most} {present.max()}, {least} {present.min()}"
        found.append(finding("class-balance", "train", len(present), more=more))
    return found


def class_counts(table: Annotations) -> np.ndarray:
    """Returns the number of objects that count of each class, [C]."""
    counted = ~(table.iscrowd | table.difficult)
    return np.bincount(table.labels[counted] - 1, minlength=len(table.classes))


def rows_of(table: Annotations) -> np.ndarray:
    """Returns the image of each object, [M]."""
    return np.repeat(np.arange(len(table)), np.diff(table.offsets))


def name_of(table: Annotations, row: int) -> str:
    """Returns the name of an image in messages: its file, or its number."""
    return one_line(os.fsdecode(table.files[row])) or f"image {row}"


def images_at(table: Annotations, rows: Iterable[int]) -> list[Example]:
    """Returns the first images as examples."""
    first = [int(row) for _, row in zip(range(MOST_EXAMPLES), rows, strict=False)]
    return [Example(name_of(table, row), os.fsdecode(table.files[row]), row) for row in first]


def _examples(table: Annotations, rows: np.ndarray, mask: np.ndarray) -> list[Example]:
    found = []
    for m in np.flatnonzero(mask)[:MOST_EXAMPLES]:
        row = int(rows[m])
        number = int(m - table.offsets[row]) + 1
        place = f"{name_of(table, row)}: object {number}, {one_line(table.classes[table.labels[m] - 1])}"
        found.append(Example(place, os.fsdecode(table.files[row]), row, number, tuple(table.boxes[m].tolist())))
    return found


def _repeats(rows: np.ndarray, table: Annotations) -> np.ndarray:
    """Returns which objects have image, class and box of an earlier one, bool [M]."""
    keys = np.column_stack([rows, table.labels, table.boxes])
    order = np.lexsort(keys.T)  # stable: the first of its kind stays first
    same = np.zeros(len(keys), bool)
    same[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return same


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
