"""Keeps words out of code and docs that plainer ones have replaced."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A break inside a phrase, which a comment may carry on to the next line.
GAP = r"\s+(?:#\s*)?"

# Patterns of whole words, in any case, and what to write instead.
WORDS = {
    rf"(?:is|are|was|were|be|been){GAP}told": "is reported, warns, logs, returns",
    rf"told{GAP}of": "reported, gets",
    "mend|mended|mends|mending": "fix, fixed",
    "parted": "separate, split",
    "heed": "respect, handle",
    "obey|obeys|obeyed": "handle, respect, stop on",
}
NAMES = {"told": "a name of the thing: message, stderr, faults"}

ANY = re.compile("|".join(rf"(?P<w{i}>\b(?:{pattern})\b)" for i, pattern in enumerate(WORDS)), re.IGNORECASE)
BETTER = list(WORDS.values())


def unplain(path: str, text: str) -> Iterator[str]:
    """Yields ``file:line: word -> better`` for each of the words in a file, and for each of the names in Python."""
    for match in ANY.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield f"{path}:{line}: {' '.join(re.findall('[A-Za-z]+', match[0]))} -> {BETTER[int(str(match.lastgroup)[1:])]}"
    if path.endswith(".py") and any(re.search(rf"\b{name}\b", text) for name in NAMES):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in NAMES:
                yield f"{path}:{token.start[0]}: {token.string} (name) -> {NAMES[token.string]}"


def files() -> list[Path]:
    """Lists the files of the project: those that git tracks or, without a clone, all outside of hidden folders."""
    if (ROOT / ".git").exists():
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    parts = [(path, path.relative_to(ROOT).parts) for path in sorted(ROOT.rglob("*"))]
    return [path for path, names in parts if path.is_file() and not any(name.startswith(".") for name in names)]


def text_of(path: Path) -> str:
    """Returns the text to check: none of a binary file, of the changelog the newest version without names in code."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return ""
    if path.name == "CHANGELOG.md":
        newest = "\n## ".join(text.split("\n## ")[:2])
        return re.sub(r"`[^`\n]*`", "``", newest)  # notes on migration give old names
    return text


def test_the_project_is_written_in_plain_words() -> None:
    results = ROOT / "results"
    own = Path(__file__).resolve()
    checked = [path for path in files() if path != own and not (path.suffix == ".json" and results in path.parents)]
    assert len(checked) > 200
    found = [line for path in checked for line in unplain(path.relative_to(ROOT).as_posix(), text_of(path))]
    assert not found, "\n".join([f"{len(found)} words to replace:", *found])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("# Users are told.", "a.py:1: are told"),
        ('"""A run\nthat is\ntold."""', "a.py:2: is told"),
        ("# It was\n# told.", "a.py:1: was told"),
        ("# Each is Told of it.", "a.py:1: is Told"),
        ("# What it told of it.", "a.py:1: told of"),
        ("pass\ntold = 1", "a.py:2: told (name)"),
        ("def f(told): pass", "a.py:1: told (name)"),
        ("PARTED = 1", "a.py:1: PARTED"),
        ("'mending'", "a.py:1: mending"),
        ("# Heed it.", "a.py:1: Heed"),
        ("# signals to obey", "a.py:1: obey"),
    ],
)
def test_a_word_is_found_where_it_is(text: str, expected: str) -> None:
    found = list(unplain("a.py", text))
    assert len(found) == 1 and found[0].startswith(f"{expected} -> ")


def test_words_that_contain_one_of_them_are_left_alone() -> None:
    text = "amended recommends heedless departed untold disobeyed; is toldless"
    assert not list(unplain("a.md", text)) and not list(unplain("a.py", "told_apart = 'what he told us'"))
