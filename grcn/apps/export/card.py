"""Writes the model card of an exported folder: Markdown for people, under the YAML that model hubs read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grcn.config.schema import Config, ShapesDataConfig

_LICENCE = "unknown   # fill in: the licence that you give these weights; that of the training data applies as well"


def model_card(
    name: str, cfg: Config, state: Mapping[str, Any], results: Mapping[str, Any], command: Sequence[str] | None
) -> str:
    """Writes a model card.

    Args:
        name: of the model.
        cfg, state: settings and contents of its checkpoint.
        results: ``results.json`` of its evaluation; empty without one.
        command: the words of the command that trained it, if known.
    """
    metrics = {key: value for key, value in results.get("metrics", {}).items() if value is not None}
    trained, tested = _splits(cfg, "train"), _splits(cfg, "test")
    parts = [
        _front_matter(name, tested, metrics),
        f"# {name}",
        f"A two-stage object detector of [grcn](https://arxiv.org/abs/2012.03677): {_method(cfg)}.",
        f"```python\nimport grcn\n\nfound = grcn.load({name!r}).predict('photo.jpg')\nprint(found.names)\n```",
        f"## Training\n\nData: {trained}. {state['step']} steps of {cfg.train.batch} images, seed {cfg.run.seed}; "
        "`config.yaml` has every setting.",
    ]
    if command:
        parts.append(f"```\n{_as_typed(command)}\n```")
    if metrics:
        table = "\n".join(f"| {key} | {100 * value:.1f} |" for key, value in metrics.items())
        images = f"{results.get('images', 'the')} images of {tested}"
        about = f"On {images}, in %. The name of a figure begins with its protocol."
        parts.append(f"## Evaluation\n\n{about}\n\n| figure | % |\n|---|---|\n{table}")
    classes = ", ".join(state["classes"])
    parts.append(f"## Classes\n\n{len(state['classes'])}, from label 1: {classes}.")
    parts.append(
        "## Licence\n\nFill in: the licence of these weights. The licence of the training data, and of weights that "
        "training started from, applies."
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, tested: str, metrics: Mapping[str, float]) -> str:
    head: dict[str, Any] = {
        "library_name": "grcn",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "faster-rcnn", "g-rcn"],
    }
    if metrics:
        result = {
            "task": {"type": "object-detection"},
            "dataset": {"name": tested, "type": "custom"},
            "metrics": [{"type": key, "value": round(value, 4)} for key, value in metrics.items()],
        }
        head["model-index"] = [{"name": name, "results": [result]}]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\nlicense: {_LICENCE}\n{text}---"


def _splits(cfg: Config, which: str) -> str:
    """Names the data of training or test."""
    if isinstance(cfg.data, ShapesDataConfig):
        return f"grcn's built-in images ({which})"
    splits = ", ".join(split.rpartition(":")[2] for split in getattr(cfg.data, which))
    return f"{splits} in the format of {cfg.data.format.upper()}"


def _method(cfg: Config) -> str:
    model = cfg.model
    cascade = ", a cascade" if model.cascade != "none" else ""
    parts = f"split of the tasks' weights: {model.split}, context: {model.context.on}"
    return f"backbone {model.backbone}, {parts}{cascade}"


def _as_typed(command: Sequence[str]) -> str:
    """Writes a command as it was typed, without the program's path on that machine."""
    program = Path(command[0])
    start = f"python tools/{program.name}" if program.suffix == ".py" else program.name
    return f"{start} {shlex.join(command[1:])}"
