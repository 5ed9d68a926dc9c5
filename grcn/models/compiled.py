"""``torch.compile`` on the parts of a detector that have fixed shapes: backbone, scoring of anchors, second stage.

Suppression and the preparation of its input stay outside, so on a GPU no part synchronizes with the host, and each is
one graph. Compilation changes speed, and in float32 losses by a relative 1e-5 at most. The parts know nothing of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from grcn.errors import ConfigError, EnvironmentFault, one_line
from grcn.models.detector import Detector

logger = logging.getLogger("grcn")

# Per part. Torch's own limit, 8, is for code that should have fewer; small maps alone have their own forms.
MOST_FORMS = 64


def compile_parts(model: Detector, mode: str, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles the parts of a detector, in place, each when it is first called.

    Sizes are symbolic from the start. So a part has some forms (training and evaluation, one object or several, odd or
    even maps, small or large ones) and not one for each size, and which one a step runs does not depend on the steps
    before it: a resumed run repeats. Each new form is logged.

    Args:
        model: on its device. A copy made afterwards would share its compiled parts: copy it first.
        mode: ``"default"``, or ``"reduce-overhead"``, which replays a GPU's kernels without the host.
        backend: of ``torch.compile``.

    Raises:
        EnvironmentFault: at the first call: the backend cannot compile on this machine.
        ConfigError: at a call: a part would have more than :data:`MOST_FORMS` forms.
        torch._dynamo.exc.Unsupported: at the first call: a part is not one graph; the message says where it breaks.
    """
    if mode == "reduce-overhead" and model.transform.multiple < 32:
        logger.info("run.compile=reduce-overhead records each size of a batch; model.image.multiple=32 makes them few")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_FORMS)
    for owner, method, name in parts(model):
        compiled = torch.compile(
            getattr(owner, method), dynamic=True, fullgraph=True, backend=backend,
            mode=mode if backend == "inductor" else None,
        )  # fmt: skip
        is_first = name == "backbone" and mode == "reduce-overhead"
        setattr(owner, method, _logged(compiled, name, is_first))


def parts(model: Detector) -> Iterator[tuple[nn.Module, str, str]]:
    """Yields the parts to compile: a module, its method, and the name for the log."""
    yield model.backbone, "forward", "backbone"
    yield model.rpn, "score_maps", "RPN"
    if model.rpn.auxiliary is not None:
        yield model.rpn.auxiliary, "score_maps", "second RPN"
    yield model.roi_heads, "losses_from_tensors", "RoI heads in training"
    yield model.roi_heads, "shortlist", "RoI heads"


def _logged(compiled: Callable[..., Any], name: str, is_first: bool) -> Callable[..., Any]:
    """Logs whenever a call compiles.

    Args:
        is_first: of the parts of a step; results of the step before may be overwritten from here on.
    """
    # Imported here only: they take a second, and are not part of torch's public interface.
    from torch._dynamo.exc import FailOnRecompileLimitHit, ShortenTraceback
    from torch._dynamo.utils import counters

    forms = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal forms
        if is_first:
            torch.compiler.cudagraph_mark_step_begin()
        before = counters["stats"]["unique_graphs"]
        try:
            found = compiled(*args, **kwargs)
        except FailOnRecompileLimitHit as error:
            remedy = "set model.image.multiple=32, or run.compile=none"
            raise ConfigError(f"run.compile: the {name} takes more than {forms} forms; {remedy}") from error
        except ShortenTraceback as error:  # of the backend alone, as without a C++ compiler or Triton
            cause = getattr(error, "inner_exception", error)
            cause = one_line(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}", 150)
            raise EnvironmentFault(f"run.compile: torch cannot compile the {name} here ({cause}); set none") from error
        if counters["stats"]["unique_graphs"] > before:
            forms += 1
            logger.info("compiled the %s (form %d)", name, forms)
        return found

    return call
