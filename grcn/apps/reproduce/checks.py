"""Checks the runs of a study before any of them starts, so that its table compares only comparable runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grcn.config.files import difference, leaves, load_config, parse_config, roles
from grcn.config.types import HOW, Role
from grcn.engine.environment import FLAGS, flags_of, read_environment
from grcn.errors import ConfigError, DataError
from grcn.torchvision_baseline import check_is_baseline, check_torchvision

if TYPE_CHECKING:
    from pathlib import Path

    from grcn.apps.reproduce.runs import Trial
    from grcn.config.schema import Config


def check_runs(runs: Sequence[Trial]) -> None:
    """Refuses runs that are tested on different images, that torchvision cannot build, or whose folders hold
    something else.

    Raises:
        ConfigError: names the first of them.
        DataError: a file of a run is damaged or missing.
    """
    for run in runs:
        if run.row.torchvision:
            check_is_baseline(run.settings.model, run.row.config)
            check_torchvision(run.settings.model)
        _check_same_test(runs[0], run)
        if not run.elsewhere:
            _check_folder(run)
        _check_kept(run)


def _check_same_test(first: Trial, other: Trial) -> None:
    known = roles()
    tested = [
        {key: value for key, value in leaves(run.settings).items() if _decides_images(key, known[key])}
        for run in (first, other)
    ]
    for key in sorted(tested[0].keys() | tested[1].keys()):
        ours, theirs = (values.get(key, "absent") for values in tested)
        if ours != theirs:
            raise ConfigError(
                f"{other.row.config}: tested on other images than {first.row.config} (got {key}: {theirs}, not "
                f"{ours}); compare configs with the same test data"
            )


def _decides_images(key: str, role: Role) -> bool:
    """Whether a setting decides which images a run is tested on; by which protocol they are scored may differ."""
    return key in ("data.root", "eval.limit") or (key.startswith("data.") and role.measure)


def holds_another(run: Trial) -> bool:
    """Whether a run's folder holds a run of other settings."""
    path = run.folder / "config.yaml"
    return path.exists() and bool(_changes(load_config(path), run.settings, "data.root"))


def _check_folder(run: Trial) -> None:
    """Refuses a folder whose run has other settings: its results would be reported as those of this study."""
    path = run.folder / "config.yaml"
    if not path.exists():
        if (run.folder / "metrics.jsonl").exists():
            raise DataError(f"{path}: missing; restore it, or remove the run's folder")
        return
    remedy = "choose another --output-dir"
    # The folder of the data does not identify them, but their fingerprint is not known before a run.
    if changes := _changes(load_config(path), run.settings, "data.root"):
        message = (
            f"{run.folder}: holds a run under other settings (its -> these); {remedy}, or give the same settings, as "
            "key=value or in the YAML file, to continue it"
        )
        raise ConfigError("\n".join([message, *changes]))
    known = read_environment(run.folder)
    flags = flags_of(known)
    if foreign := [flag for flag in FLAGS if flag in flags and flag != "--torchvision"]:
        raise ConfigError(f"{run.folder}: not trained by its config alone (got {foreign[0]}); {remedy}")
    if known and run.row.torchvision != ("--torchvision" in flags):
        whose = ("torchvision's detector", "ours") if run.row.torchvision else ("ours", "torchvision's detector")
        raise ConfigError(f"{run.folder}: holds the other detector (need {whose[0]}, got {whose[1]}); {remedy}")
    if run.is_done() and not run.results.exists():
        raise DataError(f"{run.results}: missing, though the run is finished; restore it, or remove the run's folder")


def _check_kept(run: Trial) -> None:
    """Refuses kept results of other settings, which would be reported as those of this study."""
    if run.kept is None or not run.kept.exists():
        return
    known = read_json(run.kept).get("run", {})
    if not isinstance(known, dict) or not isinstance(known.get("config"), str):
        raise DataError(f"{run.kept}: does not record its settings; remove it, or choose another --results")
    if changes := _changes(parse_config(known["config"], str(run.kept)), run.settings):
        message = f"{run.kept}: holds a result of other settings (its -> these); give the same, or another --results"
        raise ConfigError("\n".join([message, *changes]))


def _changes(theirs: Config, ours: Config, but: str | None = None) -> list[str]:
    """Returns a line for each setting that differs and affects more than how a run is carried out, and for ``but``."""
    known = roles()
    found = difference(theirs, ours)
    if ours.run.amp == "auto":  # a run records the precision that it chose
        found.pop("run.amp", None)
    return [line for key, line in found.items() if key == but or known[key] != HOW]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of a run.

    Raises:
        DataError: it is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict):
            return document
    except ValueError:
        pass
    raise DataError(f"{path}: damaged; restore it, or remove the run's folder")
