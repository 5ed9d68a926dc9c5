"""Saves and loads checkpoints: atomic, verified by their SHA-256, and equal in bytes for equal states.

A checkpoint is ``step_NNNNNNNN-<start of its SHA-256>.pt``: one atomic rename publishes contents
and digest together. ``torch.load`` notices few flipped bits, so the digest is verified before
anything is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grcn import fileio
from grcn.errors import CheckpointError, EnvironmentFault, is_of_the_machine, one_line
from grcn.fileio import appearance, cause, check_archive, is_archive, read_file, unusable

FORMAT = 1

logger = logging.getLogger("grcn")

_NAME = re.compile(r"step_(\d{8,})-[0-9a-f]{16}\.pt")
# A weight that torchvision's two-stage detectors have and ours do not.
_OF_TORCHVISION = "roi_heads.box_predictor.cls_score.weight"
_REQUIRED = {"format": int, "step": int, "model": dict, "optimizer": dict, "losses": list}


def save(folder: Path, state: Mapping[str, Any], keep: int) -> Path:
    """Writes a checkpoint durably and removes all but the newest ``keep`` up to its step.

    Equal states give equal bytes, whether or not one of them has been through a checkpoint before.

    Args:
        folder: created if missing. Checkpoints of later steps in it are kept.
        state: tensors and plain types in dicts, lists and tuples; ``step`` is in it.
        keep: at least 1.

    Raises:
        EnvironmentFault: it cannot be written (disk full, no permission). Existing files are
            untouched.
    """
    buffer = _Buffer()
    torch.save(_plain(state), buffer)
    contents = buffer.getbuffer()
    path = folder / f"step_{state['step']:08d}-{_digest(contents)}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fileio.write_durably(path, contents)
    except OSError as error:
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        need = f"{len(contents) >> 20} MiB needed, {free >> 20} MiB free"
        raise EnvironmentFault(
            f"{path}: cannot save (got {error.strerror}; {need}); "
            "free space or fix access, then run again with --resume"
        ) from error
    _prune(folder, path, keep)
    return path


class _Buffer(io.BytesIO):
    """A buffer that is written in small pieces, since no other Python thread runs during a write."""

    def write(self, contents: Any) -> int:
        for start in range(0, len(contents), 2**20):
            super().write(contents[start : start + 2**20])
        return len(contents)


def snapshot(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copies a state onto the CPU, to be saved while the original changes: the two share no tensor and no container.

    Raises:
        TypeError: it holds something other than tensors and plain types.
    """
    return _plain(state, copy=True)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, after verifying it.

    A file whose name ends in its digest is verified by it; any other file by the checksums of its
    zip archive.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint of ours; its weights are
            not finite.
    """
    contents = read_file(path, f"pass an existing checkpoint, such as {_near(path)}")
    _verify(path, contents)
    try:
        state = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
        problem = _problem(state, path.name)
    except Exception as error:  # whatever a foreign file makes torch raise
        if is_of_the_machine(error):
            raise
        problem = f"not a checkpoint of plain tensors (got {cause(error)}); use one of grcn"
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return state


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    path: Path | None = None,
) -> None:
    """Loads a checkpoint's weights, and the state of its optimizer, into objects built alike.

    The optimizer keeps its own settings: momentum, weight decay and the like are not state.

    Args:
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: they were built differently.
    """
    where = f"{path}: " * (path is not None) + f"checkpoint of step {state['step']}"
    theirs, ours = state["model"], model.state_dict()
    if _OF_TORCHVISION in theirs.keys() - ours.keys():
        raise CheckpointError(
            f"{where}: of torchvision's detector; pass one of ours, or the detections.json of its run to grcn eval"
        )
    missing, unexpected = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise CheckpointError(
                f"{where}: another model: {len(missing)} weights missing, {len(unexpected)} "
                f"unexpected (first {kind}: {', '.join(names[:3])[:80]}); use its own config and parts"
            )
    for name, tensor in ours.items():
        got, need = list(theirs[name].shape), list(tensor.shape)
        if got != need:
            raise CheckpointError(
                f"{where}: {name} has another shape (got {got}, need {need}); "
                "use the config and the classes it was trained with"
            )
    model.load_state_dict(theirs)
    if optimizer is not None:
        groups = optimizer.state_dict()["param_groups"]
        if fault := _optimizer_fault(state["optimizer"], optimizer):
            raise CheckpointError(f"{where}: another optimizer ({fault}); use the config it was trained with")
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        _lay_out_as_weights(optimizer)


def _near(path: Path) -> str:
    """Suggests a checkpoint for a path that is not one, such as the folder of a run."""
    return str(best_or_newest(path) or best_or_newest(path.parent) or "step_00001000-….pt")


def folder_of(path: Path) -> Path:
    """Returns the folder of the run that a checkpoint lies in, as its best or among ``checkpoints``."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def best_or_newest(folder: Path) -> Path | None:
    """Returns the best checkpoint of a run's folder, or else the newest in it, by their names alone; None without."""
    newest = (path for inside in (folder / "checkpoints", folder) for path in _checkpoints(inside)[-1:])
    return next(iter(sorted(folder.glob("best-step_*.pt"))), None) or next(newest, None)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest checkpoint that verifies, or None where there are no checkpoints.

    Each one that does not verify is named in a warning.

    Raises:
        CheckpointError: there are checkpoints, and none is usable.
    """
    return next(_usable(folder, _checkpoints(folder)[::-1]), None)


def every(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the checkpoints that verify, oldest first, each read when it is asked for.

    Each one that does not verify is named in a warning.

    Raises:
        CheckpointError: there are checkpoints, and none is usable.
    """
    return _usable(folder, _checkpoints(folder))


def _usable(folder: Path, paths: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    found = False
    for path in paths:
        try:
            state = load(path)
        except CheckpointError as error:
            logger.warning("skipped: %s", one_line(str(error)))
            continue
        found = True
        yield path, state
    if paths and not found:
        raise CheckpointError(f"{folder}: no usable checkpoint among {len(paths)}; restore one or use a new folder")


def keep_best(folder: Path, ranked: Sequence[int]) -> None:
    """Keeps the checkpoint of the best step that has one as ``best-<its name>`` beside ``folder``, and no other.

    Args:
        folder: of the checkpoints.
        ranked: steps, the best first. The later ones serve a folder that a checkpoint was removed from, or that a run
            from elsewhere was continued into.
    """
    best = next((found for step in ranked if (found := _as_best(folder, step))), None)
    if best is not None:
        for other in folder.parent.glob("best-step_*.pt"):
            if other != best:
                other.unlink()


def _as_best(folder: Path, step: int) -> Path | None:
    """Returns the file of a step that is kept as the best, made from its checkpoint if need be; None if there is none.

    The checkpoint comes first: an existing best file may be older than the run's last pass over this step.
    """
    for path in _checkpoints(folder):
        best = folder.parent / f"best-{path.name}"
        if _step(path) != step:
            continue
        if best.exists() and best.samefile(path):
            return best
        contents = path.read_bytes()
        if path.stem.endswith(_digest(contents)):
            for torn in folder.parent.glob(".tmp-best-*"):
                torn.unlink()
            _link(path, best, contents)
            return best
    return next(folder.parent.glob(f"best-step_{step:08d}-*.pt"), None)


def _link(path: Path, other: Path, contents: bytes) -> None:
    """Hard-links a file to a second name, or copies it where the file system has no links."""
    temporary = other.parent / f".tmp-{other.name}"
    try:
        os.link(path, temporary)
        temporary.replace(other)
        fileio.sync(other.parent)
    except OSError:
        fileio.write_durably(other, contents)


def latest_step(folder: Path) -> int:
    """Returns the step of the newest checkpoint by its name, -1 where there is none."""
    return max(map(_step, _checkpoints(folder)), default=-1)


def _checkpoints(folder: Path) -> list[Path]:
    """Lists checkpoints by step, oldest first; file times are ignored."""
    paths = [path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (_step(path), path.name))


def _step(path: Path) -> int:
    return int(path.name[5:].partition("-")[0])


def _prune(folder: Path, saved: Path, keep: int) -> None:
    paths = _checkpoints(folder)
    until = paths.index(saved)
    for path in [*paths[: max(0, until + 1 - keep)], *folder.glob(".tmp-*")]:
        path.unlink(missing_ok=True)


def _digest(contents: bytes | memoryview) -> str:
    return hashlib.sha256(contents).hexdigest()[:16]


def _verify(path: Path, contents: bytes) -> None:
    """Raises a CheckpointError for a file that differs from what was written, or must not be unpacked."""
    match = re.search(r"-([0-9a-f]{16})\.pt$", path.name)
    if match and (digest := _digest(contents)) != match[1]:
        looks = "" if is_archive(contents) else f", {appearance(contents)}"
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is not that in its name (got {digest}{looks}); use another"
        )
    try:
        check_archive(contents, checksums=not match)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint (got {error}); use another") from error


def _problem(state: Any, name: str) -> str | None:
    """Describes what is wrong with the contents of a checkpoint of this name, and the fix."""
    found = state if isinstance(state, dict) else {}
    if wrong := [key for key, kind in _REQUIRED.items() if not isinstance(found.get(key), kind)]:
        remedy = "use one of grcn, or load weights of others by model.weights"
        return f"not a checkpoint of grcn (no {', '.join(wrong)} in it); {remedy}"
    if state["format"] != FORMAT:
        return f"written in another format (got {state['format']}, need {FORMAT}); update grcn"
    if (match := _NAME.fullmatch(name.removeprefix("best-"))) and int(match[1]) != state["step"]:
        return f"damaged or renamed (got step {state['step']}); give it its name back, or use another"
    average = state.get("ema", {"model": {}, "steps": 0})
    kinds = {"model": dict, "steps": int}
    if not isinstance(average, dict) or not all(isinstance(average.get(key), kind) for key, kind in kinds.items()):
        return "damaged (its ema is no average of weights); use an earlier checkpoint"
    fault = unusable(state["model"]) or unusable(average["model"])
    return f"{fault}; use an earlier checkpoint" if fault else None


def _plain(value: Any, copy: bool = False) -> Any:
    """Copies a state into plain containers with tensors on the CPU, which it shares unless ``copy`` is set.

    Pickle writes a repeated object as a reference, so equal strings must be one object for equal
    states to give equal bytes: they are interned.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=copy)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item, copy) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item, copy) for item in value)
    if isinstance(value, list):
        return [_plain(item, copy) for item in value]
    if isinstance(value, str):
        return sys.intern(value)
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain types only (got {type(value).__name__})")


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Gives momenta the strides of their weights: the fused update walks both in memory order.

    Momenta in a file have the strides of the device that wrote them; on a GPU weights are channels_last. Other strides
    stay: those of dimensions of one element mean nothing, but are part of the bytes of a checkpoint.
    """
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and _strides(value) != _strides(weight):
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _strides(tensor: Tensor) -> list[int]:
    """Returns the strides that matter: of dimensions of more than one element."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _optimizer_fault(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """Describes why a saved optimizer does not fit the same weights in the same order; None if it does."""
    own = optimizer.param_groups
    weights = [weight for group in own for weight in group["params"]]
    try:
        got = [len(group["params"]) for group in saved["param_groups"]]
        need = [len(group["params"]) for group in own]
        if got != need:
            return f"got groups of {got} weights, need {need}"
        theirs, ours = ({name for group in groups for name in group} for groups in (saved["param_groups"], own))
        # A release of torch that adds a setting to an optimizer does not make it another.
        if theirs - ours and ours - theirs:
            return f"got one with {', '.join(sorted(theirs - ours))}, need {', '.join(sorted(ours - theirs))}"
        if len(saved["state"]) not in (0, len(weights)):
            return f"got the state of {len(saved['state'])} weights, need {len(weights)}"
        for index, values in saved["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != weights[index].shape:
                    return f"got {name} of {list(value.shape)}, need {list(weights[index].shape)}"
    except (KeyError, TypeError, AttributeError, IndexError):
        return "got no groups and states of weights"
    return None
