"""Initial values: every parameter from a hash of the seed and its layer's name, so that models are paired by seed.

A layer has the same values in every row of a table, wherever its weights are: layers of the backbone and of the heads
that exist once per task start as copies of each other (paper, Sec. 3.2), which makes detect-F, detect-RF and Faster
R-CNN the same function before training. Two context modules start with different values.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grcn import rng
from grcn.models.layer_names import FOREIGN, in_first_stage, layer_name

# Layers added to the pretrained network: N(0, .01), and N(0, .001) for the box regressor (Ren et al., Sec. 3.1.3;
# Girshick's code).
_NEW_LAYERS = {
    "rpn.": 0.01,
    "roi_heads.heads.cls_score": 0.01,
    "roi_heads.heads.bbox_pred": 0.001,
    "roi_heads.context.": 0.01,
}
# Last convolution of a residual unit. After a batch norm that only scales, 33 sums of full size would grow without
# bound.
_RESIDUAL = 0.25


# The functions that our layers and those of torch.nn draw their values with; kaiming_normal_ calls normal_.
_DRAWS = {nn.init.kaiming_uniform_, nn.init.uniform_, Tensor.normal_}


class Undrawn(TorchFunctionMode):
    """Builds layers without drawing values that :func:`initialise` sets again; of VGG16 they take a third of the time.

    Values that are not drawn, such as those of norms and buffers, are set as usual.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return (*args, *kwargs.values())[0] if func in _DRAWS else func(*args, **kwargs)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, context: str = "gaussian", but: str | None = None) -> None:
    """Sets every parameter of a detector in place, except those of a timm network and those on the meta device.

    Biases are 0, norms the identity, the paper's new layers small and Gaussian, conv(2,2,2) Xavier-uniform, fc6 and
    fc7 as torchvision's linear layers (larger ones drown the classifier on the unnormalised features of a pretrained
    VGG16), laterals and outputs of a pyramid uniform of variance 1 / fan in, as torchvision's, and other convolutions
    He-normal (fan in), which is what training without pretrained weights needs.

    Args:
        context: values of the projections of the context attention: ``"gaussian"``, as for all new layers;
            ``"xavier"``, uniform; or ``"zero"``: those of ``W_V`` are 0, and the attention adds nothing at first.
        but: beginning of the names of parameters that keep their values.
    """
    for name, parameter in ((in_first_stage(name), parameter) for name, parameter in model.named_parameters()):
        if but is not None and name.startswith(but):
            continue
        if parameter.is_meta or layer_name(name).startswith(FOREIGN) or parameter.dim() == 0:
            continue  # a gate or a temperature starts as it is built
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1)
        else:
            # The second head of detect-S is an addition, not the other task's copy: it has its own values.
            own = name if ".second." in name else layer_name(name)
            is_xavier = ".pool4." in name or context == "xavier" and ".context." in name
            parameter.copy_(_draw(name, parameter, is_xavier, rng.hash_int(seed, rng.INIT, _number(own))))
            if context == "zero" and ".context." in name and name.endswith("value.weight"):
                parameter.zero_()


def _draw(name: str, parameter: Tensor, is_xavier: bool, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    fan_in = parameter[0].numel()
    fan_out = parameter.numel() // parameter.shape[1]
    is_pyramid = re.fullmatch(r"backbone\.\w+\.(lateral|output)\d\.weight", name) is not None
    bound = math.sqrt(6 / (fan_in + fan_out)) if is_xavier else math.sqrt((3 if is_pyramid else 1) / fan_in)
    if is_xavier or is_pyramid or ".fc" in name:
        return torch.rand(parameter.shape, generator=generator).mul_(2 * bound).sub_(bound)
    std = next((std for prefix, std in _NEW_LAYERS.items() if name.startswith(prefix)), math.sqrt(2 / fan_in))
    if name.endswith(".conv3.weight"):
        std *= _RESIDUAL
    return torch.randn(parameter.shape, generator=generator).mul_(std)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
