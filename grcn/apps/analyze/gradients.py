"""Compares the gradients of the classification and localization losses in the layers that the tasks share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor, nn

from grcn.engine.evaluate import move_images, move_targets
from grcn.errors import NonFiniteError

LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
# Of each stage, the losses that classify and those that localize. The paper discusses the second stage.
STAGES = {
    "second_stage": (("loss_classifier",), ("loss_box_reg",)),
    "first_stage": (("loss_objectness",), ("loss_rpn_box_reg",)),
    "both_stages": (("loss_classifier", "loss_objectness"), ("loss_box_reg", "loss_rpn_box_reg")),
}


@dataclass(frozen=True)
class Conflict:
    """Relation between the gradients of the two tasks in one layer, over some batches.

    Attributes:
        reached_by: the tasks whose gradient is not zero in every batch: ``both``, ``cls``, ``loc`` or ``none``.
        cosine: between the two gradients, the mean over ``batches``; None where not both tasks reach the layer.
        standard_error: of that mean; None for fewer than two batches.
        negative: share of the batches whose cosine is below zero.
        cls_norm, loc_norm: Euclidean norms of the gradients, means over all batches.
        ratio: the first divided by the second; None where one is zero.
        batches: those in which both gradients have a direction (a batch without foreground has none for boxes).
    """

    reached_by: str
    cosine: float | None
    standard_error: float | None
    negative: float | None
    cls_norm: float
    loc_norm: float
    ratio: float | None
    batches: int


def conflict(
    model: nn.Module, batches: Iterable[tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]]]
) -> dict[str, dict[str, Conflict]]:
    """Compares, in each trained layer, the gradients of the classification and of the localization losses.

    The cosine is taken in each batch and then averaged: it shows how the tasks pull within one update. The noise of a
    batch, as far as it is independent between the tasks, draws it towards zero. Gradients have the precision of the
    model, their inner products are summed in float64. Nothing is updated: weights, buffers, ``.grad`` and torch's
    random state are as before.

    Args:
        model: in training mode, where ``model(images, targets)`` returns scalar losses under the names of
            :data:`LOSSES`, as torchvision's detectors of two stages do; losses of other names are left out.
        batches: images, uint8 or float ``[3, H, W]``, and their targets; moved to the model's device.

    Returns:
        for each layer of :func:`layers_of`, in its order, a :class:`Conflict` for each of :data:`STAGES`.

    Raises:
        ValueError: the model is in evaluation mode or lacks a loss; there is no batch.
        NonFiniteError: a gradient is not finite.
    """
    if not model.training:
        raise ValueError("losses are returned in training mode; call model.train()")
    layers = layers_of(model)
    device = next(model.parameters()).device
    products = []
    with _unchanged(model, device):
        for index, (images, targets) in enumerate(batches):
            torch.manual_seed(index)  # for models that draw from it: the same for every state of the weights
            losses = model(move_images(images, device), move_targets(targets, device))
            products.append(_products(losses, list(layers.values())).cpu())
    if not products:
        raise ValueError("no batches to compare gradients on")
    found = torch.stack(products)
    if not found.isfinite().all():
        raise NonFiniteError("gradients are not finite; use an earlier checkpoint")
    return {
        name: {stage: _summary(found[:, i], *tasks) for stage, tasks in STAGES.items()} for i, name in enumerate(layers)
    }


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Groups the trained parameters into layers, in the order in which the model registers them.

    A layer is a member of the outermost ``nn.Sequential`` around a parameter (a convolution of VGG16, a residual unit
    of a ResNet), else the module that owns it. A module of vectors only, which is a norm, belongs to the layer before
    it.
    """
    modules = dict(model.named_modules())
    layers: dict[str, list[nn.Parameter]] = {}
    last = ""
    for path, module in modules.items():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        if not own:
            continue
        name, words = path, path.split(".")
        for end in range(len(words)):
            if isinstance(modules[".".join(words[:end])], nn.Sequential):
                name = ".".join(words[: end + 1])
                break
        beside = last and name.rpartition(".")[0] == last.rpartition(".")[0]
        if name not in layers and beside and all(parameter.dim() < 2 for parameter in own):
            name = last
        layers.setdefault(name, []).extend(own)
        last = name
    return layers


@contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores what a forward pass in training mode changes: buffers of batch norms, torch's random state."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _products(losses: Mapping[str, Tensor], layers: list[list[nn.Parameter]]) -> Tensor:
    """Computes inner products of the losses' gradients in each layer: float64 ``[layers, losses, losses]``."""
    if missing := [name for name in LOSSES if name not in losses]:
        raise ValueError(f"the model has no {', '.join(missing)} (got {', '.join(losses)}); need one of two stages")
    parameters = [parameter for layer in layers for parameter in layer]
    layer_of = [index for index, layer in enumerate(layers) for _ in layer]
    gradients = [_gradient(losses[name], parameters) for name in LOSSES]
    products = torch.zeros(len(layers), len(LOSSES), len(LOSSES), dtype=torch.float64, device=parameters[0].device)
    for i, j in combinations_with_replacement(range(len(LOSSES)), 2):
        for layer, one, other in zip(layer_of, gradients[i], gradients[j], strict=True):
            if one is not None and other is not None:
                products[layer, i, j] += (one * other).sum(dtype=torch.float64)
        products[:, j, i] = products[:, i, j]
    return products


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Sequence[Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(parameters)
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _summary(products: Tensor, classifying: Sequence[str], localizing: Sequence[str]) -> Conflict:
    """Sums up one layer's inner products ``[batches, losses, losses]`` for two sums of losses."""
    cls, loc = (torch.tensor([name in task for name in LOSSES]).double() for task in (classifying, localizing))
    dots, cls_norms, loc_norms = products @ loc @ cls, *((products @ x @ x).clamp(min=0).sqrt() for x in (cls, loc))
    reached = bool(cls_norms.any()), bool(loc_norms.any())
    both = (cls_norms > 0) & (loc_norms > 0)
    cosines = (dots / (cls_norms * loc_norms))[both].clamp(-1, 1)
    count = len(cosines)
    means = cls_norms.mean().item(), loc_norms.mean().item()
    return Conflict(
        reached_by={(True, True): "both", (True, False): "cls", (False, True): "loc"}.get(reached, "none"),
        cosine=cosines.mean().item() if count else None,
        standard_error=(cosines.std() / count**0.5).item() if count > 1 else None,
        negative=(cosines < 0).double().mean().item() if count else None,
        cls_norm=means[0],
        loc_norm=means[1],
        ratio=means[0] / means[1] if all(reached) else None,
        batches=count,
    )
