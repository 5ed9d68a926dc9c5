"""Shows the inputs of training steps, with anchors and RoIs, as a picture and in figures, for ``grcn browse``."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from grcn import build
from grcn.apps.browse.sheet import Panel, draw_sheet, overlap_text
from grcn.config.schema import Config
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import usable_rows
from grcn.engine import distributed
from grcn.engine.evaluate import move_images, move_targets
from grcn.models.detector import Detector
from grcn.progress import progress_bar
from grcn.run.backend import prepare, with_precision
from grcn.run.start import start_from
from grcn.vis.image_file import check_output, write_picture
from grcn.vis.inputs import sample_title
from grcn.vis.samples import Sample, inputs_of, samples_of

MOST_IMAGES = 48  # of a sheet: JPEG is limited to 65,535 pixels a side, and a row takes a thousand at most

logger = logging.getLogger("grcn")


def browse(
    cfg: Config,
    path: Path,
    *,
    images: int,
    panels: Sequence[Panel],
    weights: Path | None = None,
    step: int | None = None,
    allow_changes: bool = False,
) -> str:
    """Draws the images of training steps as the model gets them, with the anchors and RoIs of their losses.

    Anchors and RoIs are those that training samples for these images: they depend on the seed and the step, and RoIs
    also on the weights.

    Args:
        path: of the picture; its suffix sets the format.
        images: maximum number of images.
        panels: what to show of each image.
        weights: a checkpoint, whose proposals are shown; None for those of the weights that training starts from.
        step: of training, counted from 1 as in ``metrics.jsonl``, whose images come first; None for the one after the
            checkpoint's.
        allow_changes: continue even if settings of the model differ from those of the checkpoint.

    Returns:
        figures of the samples shown, in lines.

    Raises:
        UserError: whatever is wrong with arguments, data, checkpoint or machine.
    """
    check_output(path)
    device = distributed.local_device(cfg.run.device)
    prepare(cfg, device)
    cfg = with_precision(cfg, device)
    data = build.build_train_split(cfg.data)
    start = start_from(cfg, data.table.classes, weights, device, allow_changes, initial="rois" in panels)
    first = start.step if step is None else step - 1
    count = min(images, len(usable_rows(data.table, cfg.data.drop_empty)))
    if count < images:
        logger.info("%s: %d images to train on, all are drawn", data.table.name, count)
    samples = _draw_samples(cfg, data, start.model.train(), first, count, panels)
    titles = [sample_title(data.table, sample) for sample in samples]
    last = first + -(-count // cfg.train.batch)
    steps = f"{first + 1}" + f" to {last}" * (last > first + 1)
    heading = [f"{data.table.name}, seed {cfg.run.seed}, step {steps}: {count} image{'s' * (count > 1)}"]
    if "rois" in panels:
        heading.append(f"RoIs are sampled from the proposals of {start.name}")
    sheet = draw_sheet(samples, titles, data.table.classes, panels, heading)
    write_picture(sheet, path)
    model = start.model
    sizes = [size for of_map in model.rpn.anchors.sizes for size in of_map]
    strides = {task: spec.strides[: spec.pooled] for task, spec in model.backbone.feature_specs.items()}
    return "\n".join([*heading, *figures(samples, sizes, strides), f"drawn in {path}"])


def figures(samples: Sequence[Sample], sizes: Sequence[float], strides: Mapping[str, Sequence[int]]) -> list[str]:
    """Summarizes samples in lines of text.

    Args:
        samples: all with anchors, or with RoIs too, or all without.
        sizes: of the anchors, of all maps.
        strides: of the maps that RoIs are pooled from, by task.
    """
    objects = [len(sample.target["labels"]) for sample in samples]
    lines = [f"objects: {sum(objects)}, {_per_image(objects)}"]
    anchors = [sample.anchors for sample in samples if sample.anchors is not None]
    if anchors:
        low, none = (
            int(torch.cat([a.rescued for a in anchors]).sum()),
            int(torch.cat([a.missed for a in anchors]).sum()),
        )
        lines += [
            f"anchors, foreground: {_per_image([len(one.boxes) for one in anchors])}",
            f"anchors, background: {_per_image([one.num_bg for one in anchors])}",
            f"objects with an anchor from IoU {anchors[0].fg_iou:g}: {sum(objects) - low - none}; by the low-quality "
            f"rule only: {low}; with none: {none}",
        ]
        best = torch.cat([one.best_size for one in anchors])
        counts = [f"{size:g}: {int((best == place).sum())}" for place, size in enumerate(sizes)]
        lines.append(f"objects by the size of their best anchor: {', '.join(counts)}")
    rois = [sample.rois for sample in samples if sample.rois is not None]
    if rois:
        lines += [
            f"RoIs, foreground: {_per_image([len(one.boxes) for one in rois])}; {overlap_text(rois)}",
            f"RoIs, background: {_per_image([len(one.background) for one in rois])}",
        ]
        for task, of_maps in strides.items():
            if len(of_maps) > 1:
                pooled = torch.cat([one.maps[task] for one in rois])
                counts = [f"{stride}: {int((pooled == place).sum())}" for place, stride in enumerate(of_maps)]
                lines.append(f"RoIs by the stride of their {task} map: {', '.join(counts)}")
    return lines


def _per_image(counts: Sequence[int]) -> str:
    return f"{sum(counts) / len(counts):.1f} per image ({min(counts)} to {max(counts)})"


def _draw_samples(
    cfg: Config, data: DetectionDataset, model: Detector, first: int, count: int, panels: Sequence[Panel]
) -> list[Sample]:
    """Feeds whole micro-batches, as training does in one process, and returns the first ``count`` samples."""
    device = model.transform.mean.device
    amp = build.amp_dtype(cfg.run)
    share = cfg.train.batch // cfg.train.accumulate
    number = -(-count // share)
    batches = build.build_batches(cfg, data, start_step=first, steps=first + MOST_IMAGES, workers=0, alone=True)
    samples: list[Sample] = []
    for images, targets in progress_bar(itertools.islice(batches, number), "browse", number, leave=False):
        fed = move_images(images, device), move_targets(targets, device)
        if panels == ["inputs"]:
            samples += inputs_of(model.transform, *fed)
            continue
        with torch.autocast(device.type, amp, enabled=amp is not None):
            samples += samples_of(model, *fed, rois="rois" in panels)
    return samples[:count]
