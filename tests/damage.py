"""Damages files, and checks the message about a damaged one."""

from __future__ import annotations

import random

from grcn.errors import LONGEST_LINE, PREFIX

_NUMBERS = (b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"9" * 25, b"-0.5", b"0.001", b"\xd9\xa3")


def is_clear(line: str) -> bool:
    """Whether a message is one short printable line with a fix."""
    return len(PREFIX + line) <= LONGEST_LINE and line.isprintable() and "; " in line


def mutate(contents: bytes, chance: random.Random) -> bytes:
    """Returns the contents with one to four changes, most of which leave a text a text."""
    for change in chance.choices(_CHANGES, k=chance.choice((1, 1, 1, 2, 4))):
        contents = change(contents or b"\0", chance)
    return contents


def damage(contents: bytes, chance: random.Random) -> bytes:
    """Returns the contents as a disk or a broken transfer may leave them: never the same."""
    start, length = chance.randrange(len(contents)), chance.choice((1, 64, 4096))
    end = min(start + length, len(contents))
    other = chance.randrange(len(contents) - (end - start) + 1)
    kinds = {
        "one bit": contents[:start] + bytes([contents[start] ^ 1 << chance.randrange(8)]) + contents[start + 1 :],
        "cut off": contents[:start],
        "zeros": contents[:start] + bytes(end - start) + contents[end:],
        "a block elsewhere": contents[:start] + contents[other : other + end - start] + contents[end:],
    }
    different = [result for result in kinds.values() if result != contents]
    return chance.choice(different)


def _flip(contents: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(contents))
    return contents[:place] + bytes([contents[place] ^ 1 << chance.randrange(8)]) + contents[place + 1 :]


def _replace(contents: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(contents))
    new = chance.choice((chance.randbytes(1), bytes([chance.choice(contents)])))
    return contents[:place] + new + contents[place + 1 :]


def _insert(contents: bytes, chance: random.Random) -> bytes:
    place, other = chance.randrange(len(contents)), chance.randrange(len(contents))
    new = chance.choice((chance.randbytes(4), contents[other : other + chance.choice((1, 20))]))
    return contents[:place] + new + contents[place:]


def _delete(contents: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(contents))
    return contents[:place] + contents[place + chance.choice((1, 8)) :]


def _repeat(contents: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(contents))
    end = start + chance.randrange(1, 200)
    return contents[:end] + contents[start:]


def _cut(contents: bytes, chance: random.Random) -> bytes:
    return contents[: chance.randrange(len(contents))]


def _change_number(contents: bytes, chance: random.Random) -> bytes:
    """Replaces a run of digits, so that the syntax survives and the meaning does not."""
    digits = [place for place, byte in enumerate(contents) if 48 <= byte < 58]
    if not digits:
        return contents
    start = end = chance.choice(digits)
    while contents[end : end + 1].isdigit():
        end += 1
    new = chance.choice((*_NUMBERS, *(str(chance.randrange(10**size)).encode() for size in range(1, 7))))
    return contents[:start] + new + contents[end:]


_CHANGES = (_flip, _replace, _insert, _delete, _repeat, _cut, *(5 * (_change_number,)))
