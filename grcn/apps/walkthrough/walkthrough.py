"""Follows one picture through a detector, step by step, and explains each intermediate result of ``Detector.forward``.

Every box is in pixels of the network's input, the resized picture, except for the detections, which are in pixels of
the picture as given. Shapes: ``R`` proposals, ``C`` channels, ``K`` classes including background, ``s x s`` bins of a
RoI, ``t x t`` cells of the pooled image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grcn import boxes
from grcn.errors import DataError
from grcn.models.detector import Detector
from grcn.models.features import TASKS, strides_as_text


@dataclass(frozen=True)
class Walk:
    """Intermediate results of one picture.

    Attributes:
        model: the detector, in evaluation mode.
        picture: as given, ``[3, h, w]``.
        tensor: the network's input without its padding, ``[3, H, W]``.
        canvas: height and width of the input with it.
        features: by task, the map ``[C, h, w]`` that the RoI is pooled from; the same for both where they share one.
        strides: by task, the stride of that map.
        proposals: ``[R, 4]``.
        roi: the proposal with the best class score ``[4]``, which is followed from here on.
        attention: by task with context, the softmax of eq. 1 for this RoI, ``[heads, s * s, t, t]``.
        scores: of the RoI ``[K]``, background first.
        box: the RoI as localization corrects it, for its best class, ``[4]``.
        detections: ``boxes``, ``labels`` and ``scores`` of the picture, best first.
    """

    model: Detector
    picture: Tensor
    tensor: Tensor
    canvas: tuple[int, int]
    features: dict[str, Tensor]
    strides: dict[str, int]
    proposals: Tensor
    roi: Tensor
    attention: dict[str, Tensor]
    scores: Tensor
    box: Tensor
    detections: dict[str, Tensor]

    def looked_at(self, task: str) -> Tensor:
        """Returns how much of the RoI's attention each cell of the image gets, ``[t, t]``; all sum to one."""
        return self.attention[task].mean((0, 1))


@torch.inference_mode()
def walk(model: Detector, picture: Tensor) -> Walk:
    """Runs one picture through a detector, one line for each arrow of the paper's figures.

    Args:
        model: of ``grcn.build.build_model`` or ``grcn.load``; is left in evaluation mode.
        picture: ``[3, h, w]``, uint8 or float in 0-1, on the model's device.

    Raises:
        DataError: nothing is proposed, as in a picture one pixel high.
    """
    model.eval()
    heads = model.roi_heads
    batch, _ = model.transform([picture])
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    rois = proposals[:, boxes.areas(proposals[0]) > 0]
    if not rois.shape[1]:
        size = f"{picture.shape[2]} x {picture.shape[1]}"
        raise DataError(f"picture: too small for any proposal (got {size} pixels); use a larger one")

    sizes = torch.tensor(batch.image_sizes, dtype=rois.dtype, device=rois.device)
    hidden, attention = {}, {}
    for task in TASKS:
        pooled = heads.pools[task](features[task], rois)
        if task in heads.context:
            context, pool = heads.context[task], heads.context_pools[task]
            image = pool.whole(features[task], sizes)
            attention[task] = context.attention(pooled, image).unflatten(-1, image.shape[2:])
            pooled = context(pooled, image)
        hidden[task] = heads.heads.hidden(task, pooled)
    scores = heads.heads.cls_score(hidden["cls"]).softmax(-1)
    deltas = heads.heads.deltas(hidden["loc"])

    detections, _ = heads(features, proposals, batch.image_sizes)
    detections = model.transform.postprocess(detections, batch.image_sizes, [(picture.shape[1], picture.shape[2])])
    best = int(scores[:, 1:].amax(1).argmax())
    label = 1 + int(scores[best, 1:].argmax())
    box = boxes.decode(deltas[best, label], rois[0, best], heads.box_weights)
    place = {task: int(pool.level_of(rois[0, best])) for task, pool in heads.pools.items()}
    return Walk(
        model, picture, batch.tensors[0, :, : batch.image_sizes[0][0], : batch.image_sizes[0][1]],
        canvas=(batch.tensors.shape[2], batch.tensors.shape[3]),
        features={task: maps[place[task]][0] for task, maps in features.items()},
        strides={task: spec.strides[place[task]] for task, spec in model.backbone.feature_specs.items()},
        proposals=rois[0],
        roi=rois[0, best],
        attention={task: weights[best] for task, weights in attention.items()},
        scores=scores[best],
        box=boxes.clip(box[None, None], sizes)[0, 0],
        detections=detections[0],
    )  # fmt: skip


def as_text(walked: Walk, classes: Sequence[str]) -> str:
    """Explains a walk in numbered steps, those of the panels of :func:`grcn.apps.walkthrough.picture.draw`.

    Args:
        classes: names of the labels 1..C.
    """
    names = ("background", *classes)
    steps = [
        _input(walked),
        *(_map(walked, task) for task in TASKS),
        *(_roi(walked, task) for task in TASKS),
        _context(walked),
        _scores(walked, names),
        _box(walked),
        _detections(walked, names),
    ]
    return "\n".join(f"{number} {step}" for number, step in enumerate(steps, start=1))


def _input(walked: Walk) -> str:
    height, width = walked.picture.shape[1:]
    transform = walked.model.transform
    padded = f" and padded to {list(walked.canvas)}" if walked.canvas != walked.tensor.shape[1:] else ""
    return (
        f"Input (Sec. 4). {width} x {height} pixels, times {walked.tensor.shape[2] / width:.3g}, become "
        f"{list(walked.tensor.shape)}: the short side {max(transform.shorts)}, the long one at most "
        f"{transform.max_size}; then normalised{padded}. Pixels of all other steps but the last are of this input."
    )


def _map(walked: Walk, task: str) -> str:
    backbone, rpn = walked.model.backbone, walked.model.rpn
    spec, stride = backbone.feature_specs[task], walked.strides[task]
    ratio = walked.tensor.shape[2] / walked.picture.shape[2]
    wide = f"{stride} pixels" + (f", {stride / ratio:.1f} of the picture" if ratio != 1 else "")
    size, several = list(walked.features[task].shape), len(spec.strides) > 1
    if several:
        side = float(boxes.areas(walked.roi)) ** 0.5
        text = (
            f"{len(spec.strides)} maps for {task}, strides {strides_as_text(spec.strides)}. The RoI of the next steps, "
            f"of side {side:.0f}, is pooled from {size} (Lin et al., eq. 1), stride {stride}: a cell for {wide}."
        )
    else:
        text = f"Map for {task}: {size}, stride {stride}: a cell for {wide}."
    if backbone.shared:
        text += " No split: both tasks read the same." if task == "cls" else " The same again."
    elif task == "cls":
        text += " The last layers are this task's own (Sec. 3.2)."
    else:
        text += " The same image through its own layers; localization benefits from a small stride (Sec. 3.4)."
    if task == rpn.reads:
        text += f" The RPN reads {'these maps' if several else 'this map'} and proposes {len(walked.proposals)} boxes."
    return text


def _roi(walked: Walk, task: str) -> str:
    stride, pool = walked.strides[task], walked.model.roi_heads.pools[task]
    across, down = ((walked.roi[2:] - walked.roi[:2]) / pool.size).tolist()
    which = f": the proposal of the best class score, {_corners(walked.roi)}" if task == "cls" else ""
    larger = f" It is pooled from a box {pool.roi_scale:g} times as wide and high." if pool.roi_scale != 1 else ""
    across, down = across * pool.roi_scale, down * pool.roi_scale
    return (
        f"One RoI on the {task} map{which}.{larger} Each of its {pool.size} x {pool.size} bins is "
        f"{across:.1f} x {down:.1f} pixels; a cell of the map, {stride} pixels, covers "
        f"{stride / across:.1f} x {stride / down:.1f} bins."
    )


def _context(walked: Walk) -> str:
    if not walked.attention:
        return "Context (Sec. 3.3, eq. 1): none in this model. A RoI sees of the image only what its map shows."
    sentences = []
    for task, weights in walked.attention.items():
        _, bins, down, across = weights.shape
        share = walked.looked_at(task).flatten().sort(descending=True).values
        half = 1 + int((share.cumsum(0) < 0.5).sum())
        gate = walked.model.roi_heads.context[task].gate
        scaled = "" if gate is None else f" The context is multiplied by the learned gate, {gate.item():.2g}."
        sentences.append(
            f"Context for {task} (Sec. 3.3, eq. 1): {bins} bins ask {down} x {across} cells of the whole image. Half "
            f"of the attention lies on {half} cells; the most on one is {share[0] * len(share):.2f} times "
            f"the even share.{scaled}"
        )
    return " ".join(sentences)


def _scores(walked: Walk, names: Sequence[str]) -> str:
    ranked = ", ".join(f"{names[k]} {walked.scores[k]:.2f}" for k in walked.scores.argsort(descending=True)[:3])
    return f"Scores of the RoI, by the cls branch: {ranked}, ... (a guess is {1 / len(names):.2f})."


def _box(walked: Walk) -> str:
    separate = walked.model.roi_heads.separate_loc_pass
    how = "its own pass" if separate else "no pass of its own: map, context and hidden layers are those of the scores"
    iou = float(boxes.iou(walked.roi[None], walked.box[None])[0, 0])
    moved = f"becomes {_corners(walked.box)}, of IoU {iou:.2f} with it" if iou < 0.995 else "stays where it is"
    stages = len(walked.model.roi_heads.stages())
    more = f" That is the first stage; {stages - 1} more refine it, and the scores are the mean of all." * (stages > 1)
    return f"Box of the RoI, by the loc branch: {_corners(walked.roi)} {moved} ({how}).{more}"


def _detections(walked: Walk, names: Sequence[str]) -> str:
    labels, scores = walked.detections["labels"].tolist(), walked.detections["scores"].tolist()
    shown = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)][:3]
    return (
        f"Detections from all proposals, scores above {walked.model.roi_heads.detecting.score_thresh:g}, after "
        f"NMS: {len(labels)}{': ' if shown else ''}{', '.join(shown)}{', ...' if len(labels) > 3 else ''}."
    )


def _corners(box: Tensor) -> str:
    return f"({', '.join(f'{side:.0f}' for side in box.tolist())})"
