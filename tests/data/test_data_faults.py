from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grcn.data.faults import LONGEST_PATH, fault, is_contained, read_bytes, shown
from grcn.errors import LONGEST_LINE, PREFIX, DataError


def test_only_paths_below_the_folder_are_contained():
    assert all(map(is_contained, ("a.jpg", "a/b c.jpg", "..a/b..", "ä.jpg", "./a")))
    bad = ("", ".", "..", "../a", "a/../b", "/a", "a\nb", "a\x1b]0;b", "a\0", "\udcff", "a" * (LONGEST_PATH + 1))
    assert not any(map(is_contained, bad))


def test_shown_values_are_short_and_printable():
    assert shown(b"ab") == "'ab'"
    assert shown(np.int64(3)) == "3"
    assert shown("\x1b]0;\n") == r"'\x1b]0;\n'"
    assert len(shown("x" * 1000)) == 60


def test_read_bytes_never_blocks(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "dangling", "missing", "."):
        what = "not a file" if name in ("pipe", ".") else "no such file"
        with pytest.raises(DataError, match=f"{what}; find it"):
            read_bytes(tmp_path / name, "find it")


@given(st.text(max_size=400), st.lists(st.one_of(st.text(), st.floats(), st.lists(st.integers())), max_size=3))
def test_every_fault_is_one_short_printable_line(place, values):
    message = str(fault(place, "of no use" + " {}" * len(values) + "; fix it", *values))
    assert message.isprintable() and message.endswith("; fix it")
    assert len(PREFIX + message) <= LONGEST_LINE
    if place.isprintable() and len(place) < 200:
        assert message.startswith(f"{place}: ")


def test_values_are_shortened_before_the_place():
    place = "data/" + "x" * 190
    message = str(fault(place, "unknown (got {}, near {}); rename it", "a" * 500, "b" * 500))
    assert message.startswith(f"{place}: unknown (got 'aaa") and message.endswith("...); rename it")
    assert str(fault("a", "bad (got {}); fix it", "b" * 40)) == f"a: bad (got '{'b' * 40}'); fix it"


def test_of_a_large_value_only_the_beginning_is_looked_at():
    assert shown([["x" * 10**7] * 10**3] * 10**3).startswith("[['xxx")
