"""HTML pages with arbitrary values: every value is escaped and encoded."""

from __future__ import annotations

import os

import pytest
from jinja2 import UndefinedError

from grcn.apps.check_data.html import page
from grcn.vis.html import render

REPORT = {
    "data": {"root": os.fsdecode(b"<b>\xff & \"'"), "train": {"images": 2}, "test": {}},
    "findings": [
        {
            "severity": "error",
            "split": "train",
            "text": "<i>broken</i>",
            "kind": "annotation",
            "count": 1234,
            "examples": [{"place": "a<br>"}, {"place": os.fsdecode(b"\xfe.jpg")}],
        }
    ],
    "classes": [{"name": "<script>", "train": 0, "test": 0}],
    "anchors": None,
    "complete": False,
}


def test_every_value_is_text_whatever_its_bytes():
    shown = page(REPORT, {("annotation", "train"): [("<u>", b"JPEG")]}, {"test": b"another"}).decode()
    assert shown.count("&lt;b&gt;\\udcff &amp; &#34;&#39;") == 2  # the title and the heading
    assert "&lt;i&gt;broken" in shown and "a&lt;br&gt;\n\\udcfe.jpg\nand 1232 more" in shown
    assert "<td>&lt;script&gt;</td>" in shown and "<figcaption>&lt;u&gt;</figcaption>" in shown
    assert shown.count("data:image/jpeg;base64,") == 2 and "<td>2</td><td>-</td>" in shown
    assert not any(tag in shown for tag in ("<b>\\", "<i>", "<u>", "<script"))


def test_a_value_that_is_missing_is_an_error_and_not_a_gap():
    with pytest.raises(UndefinedError, match="findings"):
        page({name: value for name, value in REPORT.items() if name != "findings"}, {}, {})
    with pytest.raises(UndefinedError, match="title"):
        render("vis/page.html")
