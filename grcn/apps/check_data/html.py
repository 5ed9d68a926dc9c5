"""The report on a data set as one page of HTML."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from grcn.vis import html
from grcn.vis.html import table, text

Pictures = Mapping[tuple[str, str], Sequence[tuple[str, bytes]]]

_STYLE = """
.bar { display: inline-block; height: .7em; background: #0072B2; } .second { background: #56B4E9; }
.bars { text-align: left; } td.bars { width: 24em; }
.finding { margin: .4em 0; border-left: .4em solid #999; padding-left: .8em; } .key { width: 1em; }
.error { border-color: #C00000; } .warning { border-color: #E69F00; }
"""


def page(report: Mapping[str, Any], pictures: Pictures, sheets: Mapping[str, bytes]) -> str:
    """Returns the page.

    Args:
        report: as :func:`grcn.apps.check_data.check.check_data` returns it.
        pictures: captions and JPEG files, by kind and split of a finding.
        sheets: JPEG files of some images with their objects, by side.
    """
    title = f"Data check: {report['data']['root']}"
    parts = [_numbers(report["data"])]
    if not report["complete"]:
        parts.append("<p>Fast check: of each split, the headers of a sample of images were read.</p>")
    parts.append("<h2>Findings</h2>")
    parts += [_finding(one, pictures.get((one["kind"], one["split"]), ())) for one in report["findings"]]
    if not report["findings"]:
        parts.append("<p>None.</p>")
    if report["classes"]:
        parts.append(_classes(report["classes"]))
    if report["anchors"] and report["anchors"]["objects"]:
        parts.append(_anchors(report["anchors"]))
    for side, sheet in sheets.items():
        parts += [f"<h2>Some images: {side}</h2>", html.picture(sheet, kind="jpeg")]
    return html.page(title, parts, _STYLE)


def _numbers(data: Mapping[str, Any]) -> str:
    keys = data["train"] or data["test"]
    rows = [[text(key), *(text(data[side].get(key, "-")) for side in ("train", "test"))] for key in keys]
    return table(["", "train", "test"], rows)


def _finding(one: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> str:
    places = "<br>\n".join(text(example["place"]) for example in one["examples"])
    more = one["count"] - len(one["examples"])
    if one["examples"] and more > 0:
        places += f"<br>and {more} more"
    figures = "".join(html.picture(picture, caption, "jpeg", "20em") for caption, picture in pictures)
    severity, split, told, kind = (text(one[key]) for key in ("severity", "split", "text", "kind"))
    opened = " open" * (severity == "error")
    line = f"<b>{severity}</b> {split}: {told} <code>{kind}</code>"
    if not places and not figures:
        return f'<div class="finding {severity}">{line}</div>'
    return (
        f'<details class="{severity}"{opened}><summary>{line}</summary>'
        f'<div class="places">{places}</div>{figures}</details>'
    )


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    most = max(max(one["train"], one["test"]) for one in classes)
    rows = [
        [text(one["name"]), str(one["train"]), str(one["test"]), _bars((one["train"], one["test"]), most)]
        for one in classes
    ]
    key = '<span class="bar key"></span> train <span class="bar second key"></span> test'
    return "<h2>Objects by class</h2>" + table(["class", "train", "test", f'<div class="bars">{key}</div>'], rows)


def _anchors(anchors: Mapping[str, Any]) -> str:
    parts = ["<h2>Anchors and sizes, at the network's scale</h2>"]
    rows = [
        [name, _list(one["sizes"]), _list(one["ratios"]), _percent(one["recall50"]), _percent(one["recall70"])]
        for name, one in (("config", anchors), ("better", anchors["suggestion"]))
        if one is not None
    ]
    head = ["", "sizes", "height / width", "found at IoU 0.5", "at 0.7"]
    parts.append(table(["anchors", *head[1:]], rows))
    if anchors["suggestion"] is None:
        parts.append("<p>None that find more were found.</p>")
    else:
        parts.append(f"<p>To set the better ones:</p><pre>{text(settings(anchors['suggestion']))}</pre>")
    for key, name in (("buckets", "square root of area"), ("aspects", "height / width")):
        most = max(one["count"] for one in anchors[key])
        rows = [
            [
                f"{one['from']:.3g} to {one['to']:.3g}" if one["to"] is not None else f"{one['from']:.3g} and more",
                str(one["count"]),
                _percent(one["recall50"]),
                _percent(one["recall70"]),
                _bars((one["count"],), most),
            ]
            for one in anchors[key]
        ]
        parts.append(table([name, "objects", *head[3:], ""], rows))
    return "\n".join(parts)


def settings(anchors: Mapping[str, Any]) -> str:
    """Writes anchors as settings of a command line, quoted for a shell, to which brackets are a pattern."""
    return " ".join(
        shlex.quote(f"model.anchors.{key}=[{','.join(f'{value:g}' for value in anchors[key])}]")
        for key in ("sizes", "ratios")
    )


def _bars(values: Sequence[int], most: int) -> str:
    """Returns a cell with a bar for each value, in proportion to the largest of the table."""
    bars = [
        f'<span class="bar{" second" * (number > 0)}" style="width:{22 * value / max(most, 1):.2f}em"></span>'
        for number, value in enumerate(values)
    ]
    return f'<td class="bars">{"<br>".join(bars)}</td>'


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
