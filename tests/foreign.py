"""Foreign files: neither checkpoints nor weights, though some of them pretend to be."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import is_clear
from support import small_detector

from grcn.engine import checkpoint
from grcn.errors import CheckpointError
from grcn.models.weights import load_weights

BIG = 2**27  # bytes of zeros in a bomb


def named(folder: Path, contents: bytes, step: int = 1) -> Path:
    """Writes contents under the name that a checkpoint of them has."""
    path = folder / f"step_{step:08d}-{checkpoint._digest(contents)}.pt"
    path.write_bytes(contents)
    return path


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zip_of(*entries: tuple[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, contents in entries:
            file.writestr(name, contents)
    return buffer.getvalue()


@functools.cache
def bomb() -> bytes:
    """Returns a file that torch reads as one tensor of zeros, a thousand times as large."""
    pickled = (
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch"
        b"\nByteStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ" + struct.pack("<i", BIG) + b"tQK\x00(J"
        + struct.pack("<i", BIG) + b"t(K\x01t\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        with file.open("archive/data/0", "w") as entry:
            for _ in range(BIG >> 20):
                entry.write(bytes(2**20))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def foreign(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Returns files that are no checkpoint of ours, and what the message says of each."""
    state = torch.load(io.BytesIO(good), weights_only=True)
    first = next(iter(state["model"]))
    poisoned = {**state["model"], first: torch.full_like(state["model"][first], torch.nan)}
    endless = {**state["model"], first: torch.full_like(state["model"][first], torch.inf)}
    odd = {key: saved({**state, key: value}) for key, value in (("model", [1]), ("step", "1"), ("optimizer", None))}
    return {
        "nothing": (b"", "empty"),
        "zeros": (bytes(4096), "only zeros"),
        "a photo": (b"\xff\xd8\xff\xe0\0\x10JFIF" * 9, "JPEG"),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG"),
        "a web page": (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        "JSON": (b'{"epoch": 1}', "JSON"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        "safetensors": ((64).to_bytes(8, "little") + b'{"a":{}}' + bytes(99), "safetensors"),
        "text": (b"weights", "starts with b'weights'"),
        "a pickle": (pickle.dumps({"model": 1}), "pickle"),
        "a cut archive": (good[:-100], "cut off"),
        "another archive": (zip_of(("a.txt", b"hello")), "not a checkpoint"),
        "a compressed archive": (zip_of(("a.txt", b"a" * 99), compression=zipfile.ZIP_DEFLATED), "compressed"),
        "two archives": (good + good, "behind something else"),
        "a bomb": (bomb(), "compressed"),
        "too many entries": (zip_of(*((f"{i}", b"") for i in range(70000))), "over 65536 entries"),
        "another program's": (saved({"epoch": 1, "state_dict": {}}), "no format, step, model"),
        "a list": (saved([1, 2]), "no format, step, model"),
        "a tensor": (saved(torch.zeros(3)), "no format, step, model"),
        "a later format": (saved({**state, "format": 99}), "update grcn"),
        "weights that are no number": (saved({**state, "model": poisoned}), f"{first} is not finite"),
        "weights that are infinite": (saved({**state, "model": endless}), f"{first} is not finite"),
        "weights that are not stored": (
            saved({**state, "model": {first: torch.zeros(1).expand(2**40)}}),
            "than are stored",
        ),
        "no tensors": (saved({**state, "model": {"a": [1]}}), "plain tensors"),
        "another step": (saved({**state, "step": 3}), "renamed (got step 3)"),
        **{f"another kind of {key}": (contents, f"no {key}") for key, contents in odd.items()},
    }


def read_weights(entry: str) -> object:
    """Loads pretrained weights into a small backbone."""
    return load_weights(small_detector().backbone, entry)


def refusal(read: Callable[[], object]) -> str:
    """Returns the message of a file that is refused."""
    with pytest.raises(CheckpointError) as caught:
        read()
    assert is_clear(str(caught.value)), caught.value
    return str(caught.value)
