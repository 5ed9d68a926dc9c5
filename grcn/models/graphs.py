"""Training steps and detections of a detector as CUDA graphs: the GPU is asked once for hundreds of kernels.

Nothing else knows of this file. :func:`use_graphs` is called on a detector, and what the detector computes stays the
same. A step is three graphs: backbone, anchors and the RPN's losses; RoIs, heads and their losses; and the backward
pass of both. Suppression stands between the first two, since its result has to be waited for. A detection is two.

A graph holds for one shape of the batch and of its objects. The first shapes that come twice are recorded, so the
frequent ones; forgetting some for others would mean to record for ever where shapes are many. All share their memory,
which is why a step must be finished before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grcn import boxes, rng

from .detector import Detector
from .transform import ImageBatch, as_tensor

Losses = dict[str, Tensor]
Key = tuple[Any, ...]


def use_graphs(model: Detector, most: int = 32) -> None:
    """Makes a detector on a GPU replay its steps and detections.

    Not for one in DistributedDataParallel: its gradients do not pass through autograd, where it would see them.

    Args:
        model: its parameters must stay where they are: loading weights in place is fine, moving it is not.
        most: shapes to keep graphs of, for training and for detection each; others run as before.
    """
    graphs = _Graphs(model, most)
    model.forward = graphs  # type: ignore[method-assign, assignment]


class _Graphs:
    """Stands in for a detector's ``forward``.

    Attributes:
        runs: replays so far; a backward pass belongs to the last one or to none.
        gradients: where the backward graphs of all shapes leave what they find, by trained parameter.
    """

    def __init__(self, model: Detector, most: int) -> None:
        self.model, self.eager, self.most = model, model.forward, most
        self.pool = torch.cuda.graph_pool_handle()
        self.kept: dict[Key, _Step | _Detection] = {}
        self.seen: set[Key] = set()
        self.runs = 0
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.gradients: list[Tensor] = []

    def __call__(self, images: list[Tensor], targets: list[dict] | None = None) -> Losses | list[dict[str, Tensor]]:
        training = self.model.training
        if not images[0].is_cuda or training != torch.is_grad_enabled() or training != (targets is not None):
            return self.eager(images, targets)
        batch, moved = self.model.transform(images, targets)
        inputs = [batch.tensors, as_tensor(batch.image_sizes, batch.tensors), as_tensor(batch.scales, batch.tensors)]
        if moved is not None:
            objects, labels, _ = boxes.pad_objects(moved)
            inputs += [objects, labels, rng.image_keys(moved, objects.device)]
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (training, half, *(tensor.shape for tensor in inputs))
        graph = self.kept.get(key) or self._record(key, inputs)
        if graph is None:
            return self.eager(images, targets)
        self.runs += 1
        for mine, given in zip(graph.inputs, inputs, strict=True):
            mine.copy_(given)
        outputs = graph.replay()
        if isinstance(outputs, dict):
            return outputs
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        return self.model.transform.postprocess(outputs, batch.image_sizes, original)

    def _record(self, key: Key, inputs: list[Tensor]) -> _Step | _Detection | None:
        """Makes the graphs of a shape if it is time to."""
        if key not in self.seen or sum(other[0] == key[0] for other in self.kept) == self.most:
            self.seen.add(key)
            return None
        # Weights that autocast has halved and kept would be taken for constants.
        torch.clear_autocast_cache()
        self.kept[key] = _Step(self, inputs) if key[0] else _Detection(self, inputs)
        torch.clear_autocast_cache()
        return self.kept[key]


class _Detection:
    """The graphs of a detection."""

    def __init__(self, graphs: _Graphs, inputs: list[Tensor]) -> None:
        self.model = model = graphs.model
        self.inputs = [tensor.clone() for tensor in inputs]
        tensors, sizes, scales = self.inputs
        batch = ImageBatch(tensors, sizes, scales)
        self.first, (features, (self.candidates, self.scores, _)) = _record(
            lambda: _propose(model, batch, None), graphs.pool
        )
        self.anchors = model.rpn.anchors(features[model.rpn.reads])  # its cache may forget them
        self.proposals = model.rpn.suppress(self.candidates, self.scores)
        self.second, self.shortlist = _record(
            lambda: model.roi_heads.shortlist(features, self.proposals, sizes), graphs.pool
        )

    def replay(self) -> list[dict[str, Tensor]]:
        """Detects in the images of ``inputs``."""
        self.first.replay()
        self.proposals.copy_(self.model.rpn.suppress(self.candidates, self.scores))
        self.second.replay()
        return self.model.roi_heads.suppress(*self.shortlist)


class _Step:
    """The graphs of a training step."""

    def __init__(self, graphs: _Graphs, inputs: list[Tensor]) -> None:
        self.graphs, self.model = graphs, graphs.model
        self.inputs = [tensor.clone() for tensor in inputs]
        tensors, sizes, scales, objects, labels, keys = self.inputs
        batch = ImageBatch(tensors, sizes, scales)
        targets = [
            {"boxes": own, "labels": classes, "rng_key": key}
            for own, classes, key in zip(objects, labels, keys, strict=True)
        ]
        rpn, heads = self.model.rpn, self.model.roi_heads
        self.first, (features, (self.candidates, self.scores, rpn_losses)) = _record(
            lambda: _propose(self.model, batch, targets), graphs.pool
        )
        self.anchors = rpn.anchors(features[rpn.reads])  # its cache may forget them
        self.proposals = rpn.suppress(self.candidates, self.scores)
        self.second, (_, roi_losses) = _record(lambda: heads(features, self.proposals, sizes, targets), graphs.pool)
        losses = {**rpn_losses, **roi_losses}
        self.incoming = torch.ones(len(losses), device=tensors.device)
        if not graphs.gradients:
            graphs.gradients = [torch.empty_like(weight) for weight in graphs.trained]

        def backward() -> None:
            found = torch.autograd.grad(list(losses.values()), graphs.trained, list(self.incoming.unbind()))
            torch._foreach_copy_(graphs.gradients, found)

        self.third, _ = _record(backward, graphs.pool)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        self.stats = rpn.last_stats, heads.last_stats
        self.start = torch.zeros((), device=tensors.device, requires_grad=True)

    def replay(self) -> Losses:
        """Returns the losses of ``inputs``, for which ``backward()`` may be called."""
        return dict(zip(self.losses, _Replay.apply(self.start, self).unbind(), strict=True))

    def forward(self) -> Tensor:
        """Replays the forward pass; returns the losses in a row."""
        self.first.replay()
        self.proposals.copy_(self.model.rpn.suppress(self.candidates, self.scores))
        self.second.replay()
        self.model.rpn.last_stats, self.model.roi_heads.last_stats = self.stats
        return torch.stack(list(self.losses.values()))

    def backward(self, incoming: Tensor) -> None:
        """Replays the backward pass, and adds what it finds to the gradients of the parameters."""
        earlier = [None if weight.grad is None else weight.grad.clone() for weight in self.graphs.trained]
        self.incoming.copy_(incoming)
        self.third.replay()
        for weight, found, before in zip(self.graphs.trained, self.graphs.gradients, earlier, strict=True):
            weight.grad = found if before is None else before.add_(found)


class _Replay(torch.autograd.Function):
    """Losses whose backward pass fills the gradients of all parameters, without passing them through autograd."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, step: _Step) -> Tensor:
        ctx.step, ctx.run = step, step.graphs.runs
        return step.forward()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, None]:
        if ctx.run != ctx.step.graphs.runs:
            raise RuntimeError("another batch was run before backward() of this one; with CUDA graphs finish one first")
        ctx.step.backward(incoming)
        return None, None


def _propose(model: Detector, batch: ImageBatch, targets: list[dict] | None) -> tuple[Any, Any]:
    features = model.backbone(batch.tensors)
    return features, model.rpn.score(batch, features, targets)


def _record(work: Callable[[], Any], pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = work()
    return graph, result
