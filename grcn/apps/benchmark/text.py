"""Formats measurements as text and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcn.apps.benchmark.describe import Part, image_size, table
from grcn.apps.benchmark.rounds import OTHERS
from grcn.build import usual_classes
from grcn.config.schema import Config


def costs_as_text(path: Path, cfg: Config, parts: list[Part], strides: dict[str, tuple[int, ...]]) -> str:
    """Formats :func:`grcn.apps.benchmark.describe.costs` of a config."""
    height, width = image_size(cfg)
    classes = len(usual_classes(cfg.data))
    return (
        f"{path}: a detection in one image of {height}x{width}, {cfg.model.rpn.post_nms_test} RoIs, "
        f"{classes} classes (those of data.classes, or the usual ones of the format)\n{table(parts, strides)}"
    )


def times_as_text(found: Mapping[str, Any]) -> str:
    """Formats the figures of ``measure``, of the loader and of the evaluation."""
    times, counts = found["times_ms"], found["counts"]
    rounds = len(times["step"])
    lines = [
        " ".join([f"{found['device']},", *found["instruction_sets"]]),
        f"threads: {found['threads']}, amp: {found['amp']}, images: {found['images']}; "
        f"medians of {rounds} rounds (minimum to maximum)",
        _row("", "training step", "detection"),
    ]
    others = [name for name in OTHERS if name in times]
    on_cpu = "busy_ms" not in found
    for kind, shown in (("times_ms", "ms"), *([("cpu_ms", "ms of CPU")] if on_cpu else [])):
        values = found[kind]
        lines.append(_row(f"grcn, {shown}", _spread(values["step"]), _spread(values["infer"])))
        for name in others:
            lines.append(_row(f"{name}, {shown}", _spread(values[name]), _spread(values[f"infer_{name}"])))
    for name in others:
        for kind, shown in (("ratios", ""), *([("cpu_ratios", ", CPU")] if on_cpu else [])):
            pair = (found[kind][f"ratio_to_{name}"], found[kind][f"infer_ratio_to_{name}"])
            lines.append(_row(f"grcn / {name}{shown}", *(_spread(values, 2) for values in pair)))
    if "busy_ms" in found:
        lines.append(_row("GPU busy, ms", f"{found['busy_ms']:.1f}", f"{found['infer_busy_ms']:.1f}"))
    compared = "torchvision" in times
    for name, shown in (("kernels", "kernels"), ("waits", "synchronizations"), ("uploads", "uploads to a GPU")):
        cells = [
            f"{counts[ours][name]}" + (f" ({counts[theirs][name]})" if compared else "")
            for ours, theirs in (("step", "torchvision"), ("infer", "infer_torchvision"))
        ]
        lines.append(_row(shown + " (torchvision)" * compared, *cells))
    lines += [f"not compared with {line}" for line in found["not_compared"]]
    parts = ", ".join(f"{name} {value:.1f}" for name, value in found["breakdown_ms"].items())
    reference = found["reference_cpu_ms"]
    beside = "" if reference is None else f" (torchvision {reference:.1f})"
    scored = found["evaluation"]
    return "\n".join(
        [
            *lines,
            f"one step by part, ms: {parts}",
            f"kept for the backward pass {found['saved_mb']:.0f} MB, peak memory {found['peak_mb']:.0f} MB, "
            f"RoIs localized {found['localized_rois']}",
            f"loader: {found['loader_img_s']:.0f} images/s, {found['loader_cpu_ms']:.1f} ms of CPU per image{beside}; "
            f"a step waits {found['data_wait_ms']:.1f} ms for it",
            f"scoring {scored['images']} images: COCO {scored['coco_s']:.1f} s ({scored['backend']}), "
            f"VOC {scored['voc_s']:.1f} s",
        ]
    )


def scaling_as_text(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Formats the result of :func:`grcn.apps.benchmark.scaling.measure_scaling`."""
    lines = [f"{'':>12}{'':>10}{'step, ms':>12}{'detection, ms':>16}"]
    for quantity, series in found.items():
        for value, step, infer in zip(series["values"], series["step_ms"], series["infer_ms"], strict=True):
            lines.append(f"{quantity:>12}{round(value, 4):>10g}{step:>12.1f}{infer:>16.1f}")
    return "\n".join(lines)


def suite_as_markdown(found: Mapping[str, Any]) -> str:
    """Formats the figures of :func:`grcn.apps.benchmark.suite.run_suite`: a table of steps and one of detections."""
    lines = [f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}", ""]
    if found["tests"] is not None:
        lines += [f"Tests marked cuda: {found['tests']['last']} (exit {found['tests']['code']})", ""]
    lines += [
        "fp32 is without TF32, tf32 with it in products and convolutions. By default torch has it in convolutions.",
        "",
    ]
    columns = "model precision batch compile ms torchvision ratio busy roofline kernels waits MB".split()
    for name, prefix, title in (("step", "", "Training step"), ("infer", "infer_", "Detection")):
        lines += [f"{title}, milliseconds", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for case in found["cases"]:
            if "error" not in case:
                lines.append("| " + " | ".join(_suite_cells(case, name, prefix)) + " |")
        lines.append("")
    for case in found["cases"]:
        named = (
            f"{case['method']}, {case['family']}, {case['precision']}, batch {case['batch']}, compile {case['mode']}"
        )
        lines += [f"- {named}: {problem}" for problem in ([case["error"]] if "error" in case else case["missing"])]
    if found["left_out"]:
        lines.append(f"- {found['left_out']} cases left out: out of time")
    return "\n".join(lines)


def _suite_cells(case: Mapping[str, Any], name: str, prefix: str) -> list[str]:
    """Returns a row of a table; figures that a case lacks stay empty."""

    def number(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    ours, theirs = case[f"{name}_ms"], case.get(f"{prefix}torchvision_ms")
    counts = case.get("counts", {}).get(name, {})
    return [
        *(f"{case['method']}, {case['family']}", case["precision"], str(case["batch"]), case["mode"]),
        *(number(ours), number(theirs), number(ours / theirs if theirs else None, 2)),
        *(number(case.get(f"{prefix}{figure}_ms")) for figure in ("busy", "roofline")),
        *(str(counts.get(figure, "")) for figure in ("kernels", "waits")),
        f"{case['peak_mb']:.0f}",
    ]


def _row(name: str, step: str, infer: str) -> str:
    return f"{name:>30}{step:>24}{infer:>24}"


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
