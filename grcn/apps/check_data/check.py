"""Checks the whole data set of a config, for ``grcn check-data``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from grcn import build
from grcn.apps.check_data.html import page
from grcn.apps.check_data.images import ImageFacts, check_facts, check_headers, check_leaks, check_missing, inspect
from grcn.apps.check_data.pictures import PictureOf, pictures_of, sheet_of
from grcn.config.schema import Config, DataConfig, ShapesDataConfig
from grcn.data.annotations import Annotations
from grcn.data.faults import Fault, Notes
from grcn.data.findings import Example, FaultCounter, Finding, check_tables, class_counts, notes_as_findings
from grcn.data.images import read_image
from grcn.errors import DataError, named, one_line
from grcn.models.features import strides_as_text
from grcn.progress import progress_bar
from grcn.run.anchor_fit import AnchorSet, findings_of, fit, listed, objects_of, settings

SEVERITIES = ("error", "warning", "note")

Side = Literal["train", "test"]


@dataclass
class _Read:
    """One side of a data set, whatever is wrong with it.

    Attributes:
        table: None if it cannot be read at all.
        findings: those of the reader.
        picture: returns the image of an example, None if there is none to show.
        facts: of its image files.
    """

    table: Annotations | None
    findings: list[Finding]
    picture: PictureOf
    facts: list[ImageFacts] = field(default_factory=list)


def check_data(cfg: Config, folder: Path, *, fast: bool = False) -> dict[str, Any]:
    """Finds every problem of a data set; writes ``check.json`` and ``check.html`` into ``folder``.

    Args:
        folder: made if it does not exist.
        fast: skip checks that decode all images; of each split, read the headers of 200.

    Returns:
        the contents of ``check.json``: ``data``, the splits by side with their numbers; ``findings``, the worst first;
        ``classes`` with their objects; ``anchors``, as :func:`grcn.run.anchor_fit.fit` returns it.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    classes = None if isinstance(cfg.data, ShapesDataConfig) else cfg.data.classes
    train = _read(cfg.data, "train", classes)
    test = _read(cfg.data, "test", classes if train.table is None else train.table.classes)
    rpn = _anchors(cfg)
    image = cfg.model.image
    findings = train.findings + test.findings
    findings += check_tables(train.table, test.table, short=image.largest, longest=image.max, stride=min(rpn.strides))
    if not isinstance(cfg.data, ShapesDataConfig):
        findings += _check_files(cfg, cfg.data.bits, train, test, fast)
    anchors = None
    if train.table is not None:
        anchors = fit(objects_of(train.table, image.largest, image.max), rpn)
        findings += findings_of(anchors, image.largest, image.max)
    findings.sort(key=lambda one: SEVERITIES.index(one.severity))
    report = {
        "data": {"root": getattr(cfg.data, "root", "shapes"), "train": _facts(train), "test": _facts(test)},
        "findings": [_as_json(one) for one in findings],
        "classes": _classes(train.table, test.table),
        "anchors": anchors,
        "complete": not fast,
    }
    pictures = pictures_of(findings, {"train": train.picture, "test": test.picture})
    sheets = (
        {} if fast else {side: sheet_of(read.table, read.picture) for side, read in (("train", train), ("test", test))}
    )
    shown = page(report, pictures, {side: sheet for side, sheet in sheets.items() if sheet})
    for name, content in (("check.json", json.dumps(report, indent=1).encode()), ("check.html", shown)):
        with named(folder / name):
            (folder / name).write_bytes(content)
    return report


def as_text(report: dict[str, Any]) -> str:
    """Formats a report for a terminal."""
    lines = [report["data"]["root"]]
    lines.append(f"{'':>24}{'train':>10}{'test':>10}")
    sides = [report["data"]["train"], report["data"]["test"]]
    for key in sides[0] or sides[1]:
        lines.append(f"{key:>24}" + "".join(f"{side.get(key, '-'):>10}" for side in sides))
    counts = report["classes"]
    for one in [*counts[:12], *([{"name": "...", "train": "", "test": ""}] if len(counts) > 12 else [])]:
        lines.append(f"{one_line(one['name'], 22):>24}{one['train']:>10}{one['test']:>10}")
    lines.append("")
    for one in report["findings"]:
        lines.append(f"{one['severity']:>7}  {one['split']:<5}  {one['text']}")
        lines += [f"{'':>16}{one_line(example['place'])}" for example in one["examples"][:3]]
        if one["examples"] and one["count"] > 3:
            lines.append(f"{'':>16}...")
    if report["anchors"] and report["anchors"]["objects"]:
        lines += ["", *anchors_as_lines(report["anchors"])]
    found = [one["severity"] for one in report["findings"]]
    lines += ["", "kinds of " + ", of ".join(f"{name}s: {found.count(name)}" for name in SEVERITIES)]
    return "\n".join(lines)


def anchors_as_lines(anchors: dict[str, Any]) -> list[str]:
    """Returns the lines about anchors: what they find, and which would find more."""

    def line(what: str, one: dict[str, Any]) -> str:
        found = f"{100 * one['recall50']:.1f} % of objects at IoU 0.5, {100 * one['recall70']:.1f} % at 0.7"
        return f"{what} sizes {listed(one['sizes'])}, ratios {listed(one['ratios'])}: {found}"

    better = anchors["suggestion"]
    first = line(f"anchors, stride {strides_as_text(anchors['strides'])}:", anchors)
    if better is None:
        return [first, "no better ones were found"]
    return [first, line("better:", better), settings(better)]


def raise_errors(report: dict[str, Any], folder: Path) -> None:
    """Raises a DataError if the report has an error."""
    errors = [one for one in report["findings"] if one["severity"] == "error"]
    if errors:
        kinds = ", ".join(dict.fromkeys(one["kind"] for one in errors))
        count = sum(max(one["count"], 1) for one in errors)
        raise DataError(f"{report['data']['root']}: {count} errors ({kinds}); see {folder / 'check.html'}")


def _read(cfg: DataConfig, side: Side, classes: tuple[str, ...] | None) -> _Read:
    """Reads the annotations of one side, whatever is wrong with them."""
    if isinstance(cfg, ShapesDataConfig):
        split = build.build_train_split(cfg) if side == "train" else build.build_test_split(cfg, None)
        return _Read(split.table, [], lambda example: split.read_image(example.row) if example.row >= 0 else None)
    faults, notes = FaultCounter(), Notes(cfg.strict)
    table = None
    try:
        table = build.read_annotations(cfg, side, classes, faults, notes)
    except Fault as fault:  # nothing can be read, as when the list is missing
        faults(fault)
    objects = 0 if table is None else len(table.boxes)
    found = faults.findings(side, objects) + notes_as_findings(notes, side)
    return _Read(table, found, lambda example: _image(cfg.folder, cfg.bits, example))


def _anchors(cfg: Config) -> AnchorSet:
    """Returns the anchors of a config's model."""
    with torch.device("meta"):
        return AnchorSet.of(build.build_model(cfg.model, 2).rpn)


def _check_files(cfg: Config, bits: int | None, train: _Read, test: _Read, fast: bool) -> list[Finding]:
    found = []
    sides: list[tuple[_Read, Side]] = [(train, "train"), (test, "test")]
    for read, side in sides:
        if read.table is None:
            continue
        missing, rows = check_missing(read.table, side)
        found += missing
        if fast:
            found += check_headers(read.table, side, rows, bits)
            continue
        facts = inspect(read.table, rows, cfg.run.workers, cfg.run.timeout, bits)
        read.facts = list(progress_bar(facts, side, len(rows), leave=False))
        found += check_facts(read.table, side, read.facts, bits)
    if train.table is not None and test.table is not None:
        found += check_leaks(train.table, train.facts, test.table, test.facts)
    return found


def _facts(read: _Read) -> dict[str, int]:
    table = read.table
    if table is None:
        return {}
    return {
        "images": len(table),
        "objects": len(table.boxes),
        "crowd": int(table.iscrowd.sum()),
        "difficult": int(table.difficult.sum()),
        "images without any": int((table.offsets[1:] == table.offsets[:-1]).sum()),
    }


def _classes(train: Annotations | None, test: Annotations | None) -> list[dict[str, Any]]:
    """Returns the classes with their numbers of objects used, the most frequent first; empty if all have none."""
    known = train or test
    if known is None:
        return []
    counts = {
        side: [0] * len(known.classes) if table is None else class_counts(table).tolist()
        for side, table in (("train", train), ("test", test))
    }
    if not sum(counts["train"]) and not sum(counts["test"]):
        return []
    rows = zip(known.classes, counts["train"], counts["test"], strict=True)
    return sorted(
        ({"name": name, "train": a, "test": b} for name, a, b in rows), key=lambda one: (-one["train"], -one["test"])
    )


def _as_json(one: Finding) -> dict[str, Any]:
    """Returns a finding as plain JSON types: no NaN, no tuples."""
    record = asdict(one)
    record["examples"] = list(record["examples"])
    for example in record["examples"]:
        if example["box"] is not None:
            example["box"] = [value if abs(value) < float("inf") else None for value in example["box"]]
    return record


def _image(root: str, bits: int | None, example: Example) -> Tensor | None:
    try:
        return read_image(os.path.join(root, example.image), bits=bits) if example.image else None
    except DataError:
        return None
