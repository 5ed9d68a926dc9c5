"""Exports a detector as one graph: a program of ``torch.export``, or an ONNX file made from it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from grcn.apps.export.fixed import FixedDetector
from grcn.errors import EnvironmentFault
from grcn.models.detector import Detector

OUTPUTS = ("boxes", "labels", "scores")


def as_program(model: Detector, size: tuple[int, int], metadata: Mapping[str, str]) -> bytes:
    """Returns the file of a program for pictures of a size; ``metadata`` are its ``extra_files``."""
    buffer = io.BytesIO()
    torch.export.save(_program(model, size), buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def as_onnx(model: Detector, size: tuple[int, int], metadata: Mapping[str, str]) -> bytes:
    """Returns an ONNX file for pictures of a size; ``metadata`` are its ``metadata_props``.

    Raises:
        EnvironmentFault: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'grcn[export]'"
        raise EnvironmentFault(f"onnx needs onnx and onnxscript ({error.name} is not installed); {remedy}") from error
    with warnings.catch_warnings(action="ignore"):
        exported = torch.onnx.export(
            _program(model, size), input_names=["image"], output_names=OUTPUTS, dynamo=True, external_data=False,
            custom_translation_table=_translations(), verbose=False,
        )  # fmt: skip
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # paths of Python files on this machine
    exported.model.metadata_props.update(metadata)
    return exported.model_proto.SerializeToString()


def _program(model: Detector, size: tuple[int, int]) -> ExportedProgram:
    fixed = FixedDetector(model, size).requires_grad_(False)
    image = torch.zeros(3, *size, device=fixed.anchors.device)
    with warnings.catch_warnings(action="ignore"):  # about torchvision's operators, not about the user's model
        program = torch.export.export(fixed, (image,))
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)
    return program


def _translations() -> dict[Callable, Callable]:
    """Returns translations of operators that torch's exporter lacks, or lacks for these types."""
    from onnxscript import opset18

    op: Any = opset18

    def sort(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # ONNX's TopK is stable: equal values keep their order.
        count = op.Reshape(op.Gather(op.Shape(self), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
        return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)

    def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        boxes, scores = op.Cast(boxes, to=1), op.Cast(scores, to=1)  # to float32: ONNX has no other
        found = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), 2**62, iou_threshold)
        return op.Reshape(op.Slice(found, [2], [3], [1]), [-1])  # of image, class and box, the last

    return {torch.ops.aten.sort.stable: sort, torch.ops.torchvision.nms.default: nms}
