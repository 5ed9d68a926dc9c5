"""The report on a data set as one page of HTML."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from grcn.vis.html import render

Pictures = Mapping[tuple[str, str], Sequence[tuple[str, bytes]]]


def page(report: Mapping[str, Any], pictures: Pictures, sheets: Mapping[str, bytes]) -> bytes:
    """Returns the page.

    Args:
        report: as :func:`grcn.apps.check_data.check.check_data` returns it.
        pictures: captions and JPEG files, by kind and split of a finding.
        sheets: JPEG files of some images with their objects, by side.
    """
    suggestion = report["anchors"] and report["anchors"]["suggestion"]
    return render(
        "apps/check_data/check.html",
        title=f"Data check: {report['data']['root']}",
        better=settings(suggestion) if suggestion else "",
        pictures=pictures,
        sheets=sheets,
        **report,
    )


def settings(anchors: Mapping[str, Any]) -> str:
    """Writes anchors as settings of a command line, quoted for a shell, to which brackets are a pattern."""
    return " ".join(shlex.quote(f"model.anchors.{key}={listed(anchors[key], ',')}") for key in ("sizes", "ratios"))


def listed(values: Sequence[Any], comma: str = ", ") -> str:
    """Writes numbers, or lists of numbers, as a list of YAML."""
    return f"[{comma.join(f'{one:g}' if isinstance(one, int | float) else listed(one, comma) for one in values)}]"
