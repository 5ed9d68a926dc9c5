"""Renders the report on a data set as one page of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grcn.run.anchor_fit import settings
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
