"""Files of pretrained weights: downloaded once, and read without running code of theirs."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grcn.errors import CheckpointError
from grcn.fileio import appearance, cause, check_archive, is_archive


def fetch(entry: str, url: str) -> Path:
    """Downloads a release into torch's hub folder, unless it is there.

    Args:
        entry: its name, for messages.
        url: its address, whose last part has the beginning of the file's SHA-256.

    Raises:
        CheckpointError: the network fails, or what comes is something else.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for a tool's result
                torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except Exception as error:  # whatever the network makes urllib raise
        raise CheckpointError(f"{entry}: cannot load {url} ({cause(error)}); put the file at {path}") from error
    return path


def tensors(path: Path, contents: bytes) -> dict[str, Tensor]:
    """Reads tensors out of what a file holds, after making sure that unpacking it is harmless.

    Raises:
        CheckpointError: it is damaged, or not a flat dict of tensors.
    """
    try:
        if is_archive(contents):  # torch's own old format, in which some releases are, is none
            check_archive(contents, compressed=path.suffix == ".npz")
        elif path.suffix == ".npz" or not contents.startswith(b"\x80"):
            raise ValueError(appearance(contents))
        if path.suffix == ".npz":
            with np.load(io.BytesIO(contents), allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        state = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes numpy, zip or pickle raise
        remedy = "use another, or download it again"
        raise CheckpointError(
            f"{path}: not a readable .npz or .pt file of tensors ({cause(error)}); {remedy}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        keys = f" of {few([str(key) for key in state])}" if isinstance(state, dict) else ""
        raise CheckpointError(f"{path}: holds a {type(state).__name__}{keys}, not tensors; save the state_dict alone")
    return state


def few(names: Sequence[str]) -> str:
    """Lists the first of some names."""
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
