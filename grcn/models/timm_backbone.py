"""Feature pyramids on networks of timm, with the same splits as on a ResNet.

Any network of timm that gives maps of strides 4, 8, 16 and 32. Its layers, initial values and expected pixels are
timm's; laterals, outputs and the split are those of :mod:`grcn.models.pyramid`. Needs the extra ``timm``.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, nn

from grcn.catalog import PYRAMID_SPLITS
from grcn.errors import ConfigError, EnvironmentFault
from grcn.fileio import cause
from grcn.models.features import TASKS, Backbone, FeatureSpec, Maps
from grcn.models.memory_format import to_memory_format
from grcn.models.pyramid import Layers, fpn_conv, pyramid_of, run_layers
from grcn.models.transform import Normalisation

_STRIDES = (4, 8, 16, 32)
# By split: the first map, as its index in _STRIDES, that each task computes for itself.
_OWN_FROM = {"conv4": 2, "conv5": 3}


class Stages(nn.Module):
    """Consecutive layers of a network, which give one or more of its maps.

    Args:
        layers: in the order in which they run.
        ends: names of the layers that end with a map.
        nhwc: whether channels come last.
    """

    def __init__(self, layers: Mapping[str, nn.Module], ends: tuple[str, ...], nhwc: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))
        self.ends, self.nhwc = ends, nhwc

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the output of the last layer, as the next one reads it, and the maps ``[N, C, H, W]``."""
        maps = []
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.ends:
                maps.append(x.permute(0, 3, 1, 2) if self.nhwc else x)
        return x, maps


class Whole(nn.Module):
    """A network of timm that runs unchanged and returns its maps of strides 4 to 32."""

    def __init__(self, network: nn.Module, places: tuple[int, ...], nhwc: bool) -> None:
        super().__init__()
        self.network, self.places, self.nhwc = network, places, nhwc

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the last map and all four, ``[N, C, H, W]``."""
        found = self.network(x)
        maps = [found[place].permute(0, 3, 1, 2) if self.nhwc else found[place] for place in self.places]
        return maps[-1], maps


class TimmPyramid(Backbone):
    """A network of timm with a pyramid of feature maps per task.

    Args:
        name: as in ``timm.list_models()``, with a tag of weights if any.
        split: ``"none"``, ``"output"``, ``"fpn"``, ``"conv5"`` or ``"conv4"``, as in
            :class:`grcn.models.pyramid.PyramidResNet`; conv5 makes the map of stride 32, conv4 that of stride 16. The
            last two need a network whose stages run one after the other.
        channels: of the pyramid's maps.
        frozen_stages: how many leading stages are not trained: those up to the map of stride 4 count as 2 (conv1 and
            conv2), each further map one more.
        norm: ``"frozen"``: batch norms keep their statistics, weights and biases; ``"trained"``: they learn, from
            the statistics of each micro-batch. Other norms are trained.
        drop_path: maximum rate at which residual units are dropped in training, where the network supports it.

    Attributes:
        normalisation: what the network expects of its input, by timm's configuration.

    Raises:
        EnvironmentFault: timm is not installed.
        ConfigError: timm has no such network, or it has no pyramid, no such split or stages, or no ``drop_path``.
        ValueError: an unknown split or norm.
    """

    def __init__(
        self,
        name: str,
        split: str = "none",
        channels: int = 256,
        frozen_stages: int = 0,
        norm: str = "frozen",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if split != "none" and split not in PYRAMID_SPLITS:
            raise ValueError(f"unknown split {split!r}; choose none, {', '.join(PYRAMID_SPLITS)}")
        if norm not in ("frozen", "trained"):
            raise ValueError(f"unknown norm {norm!r}; choose frozen or trained")
        network = create(name, drop_path)
        places, widths = _maps_of(name, network)
        config: Mapping[str, Any] = getattr(network, "default_cfg", None) or network.pretrained_cfg  # type: ignore[assignment]
        self.normalisation = Normalisation(tuple(config["mean"]), tuple(config["std"]))
        self.name = name
        if frozen_stages:
            _freeze(name, network, places, frozen_stages)
        _freeze_norms(network, every=norm == "frozen")

        nhwc = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        self.body: Stages | Whole
        self.shared = split == "none"
        if split in _OWN_FROM:
            self.body, tail = _cut(name, network, places, nhwc, _OWN_FROM[split])
            tails = {"cls": tail, "loc": copy.deepcopy(tail)}
        else:
            self.body, tails = Whole(network, places, nhwc), {}
        laterals = {f"lateral{level}": fpn_conv(widths[level - 2], channels, 1, "none") for level in (5, 4, 3, 2)}
        outputs = {f"output{level}": fpn_conv(channels, channels, 3, "none") for level in (2, 3, 4, 5)}
        shared = {"none": laterals | outputs, "output": laterals}.get(split, {})
        own = {key: layer for key, layer in (laterals | outputs).items() if key not in shared}
        self.trunk = Layers(shared)
        self.cls = None if self.shared else Branch(tails.get("cls"), Layers(own))
        self.loc = None if self.shared else Branch(tails.get("loc"), Layers(copy.deepcopy(own)))
        self.feature_specs = {task: FeatureSpec(channels, (*_STRIDES, 64), pooled=4) for task in TASKS}

    def forward(self, x: Tensor) -> dict[str, Maps]:
        """Maps images ``[N, 3, H, W]`` to ``{"cls", "loc"}``, each five maps ``[N, channels, ceil(H / stride), ceil(W /
        stride)]``; ``H`` and ``W`` are multiples of 32."""
        last, found = self.body(to_memory_format(x, "train_units" if self.training else "eval"))
        maps = {"x": last} | {f"C{level}": map_ for level, map_ in enumerate(found, start=2)}
        maps = self.trunk(maps)
        if self.cls is None or self.loc is None:
            pyramid = pyramid_of(maps)
            return {"cls": pyramid, "loc": pyramid}
        return {"cls": pyramid_of(self.cls(maps)), "loc": pyramid_of(self.loc(maps))}


class Branch(nn.Module):
    """The layers that one task owns: the last stages, or none, and layers of the pyramid."""

    def __init__(self, tail: Stages | None, layers: Layers) -> None:
        super().__init__()
        self.tail = tail
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._names = tuple(layers)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Runs them on maps of :func:`grcn.models.pyramid.run_layers`."""
        if self.tail is not None:
            _, found = self.tail(maps["x"])
            maps = maps | {f"C{level}": map_ for level, map_ in enumerate(found, start=6 - len(found))}
        return run_layers({name: getattr(self, name) for name in self._names}, maps)


def create(name: str, drop_path: float = 0.0) -> nn.Module:
    """Builds a network of timm that returns its maps, with random weights; reads neither disk nor network.

    Raises:
        EnvironmentFault, ConfigError: as for :class:`TimmPyramid`.
    """
    try:
        import timm
    except ImportError as error:
        raise EnvironmentFault(f"timm:{name} needs timm, which is not installed; pip install 'grcn[timm]'") from error
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        try:
            # Without this, networks with windowed attention are built for one image size.
            return timm.create_model(name, features_only=True, strict_img_size=False, **options)
        except TypeError:
            return timm.create_model(name, features_only=True, **options)
    except Exception as error:  # whatever timm raises about a name or an argument
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        remedy = f"did you mean {close[0]}?" if close and close[0] != name.partition(".")[0] else "choose another"
        if options:
            remedy += " Not every network has model.timm.drop_path"
        raise ConfigError(f"model.backbone: timm cannot build {name!r} ({cause(error)}); {remedy}") from error


def timm_key(layer: str, keys: Container[str]) -> str:
    """Returns timm's key for a weight of its network.

    Args:
        layer: its layer name, without the prefix that all layers of the network have.
        keys: those of timm's weights. A network that is run stage by stage calls ``stages.0`` ``stages_0``.
    """
    first, dot, rest = layer.partition(".")
    nested = ".".join(first.rsplit("_", 1)) + dot + rest
    return nested if layer not in keys and nested in keys else layer


def _maps_of(name: str, network: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns which of the network's maps have strides 4, 8, 16 and 32, and their channels."""
    info: Any = network.feature_info
    strides, widths = info.reduction(), info.channels()
    if not set(_STRIDES) <= set(strides):
        raise ConfigError(
            f"model.backbone: {name} has maps of strides {', '.join(map(str, strides))}, and a pyramid needs 4, 8, 16 "
            "and 32, which plain transformers do not have; choose a network of stages, as resnet50, convnext_tiny, "
            "efficientnet_b0 or swin_tiny_patch4_window7_224"
        )
    places = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in _STRIDES)
    return places, tuple(widths[place] for place in places)


def _freeze(name: str, network: nn.Module, places: tuple[int, ...], stages: int) -> None:
    """Freezes the parameters up to a map, in the order in which the network has them."""
    if not 2 <= stages <= 5:
        raise ConfigError(f"model.freeze: {name} can freeze 0 or 2 to 5 stages (got {stages}); choose one of these")
    info: Any = network.feature_info
    module = info.module_name()[places[stages - 2]]
    named = list(network.named_parameters())
    if isinstance(network, nn.ModuleDict):  # of the stages in a row
        order = list(network)
        leading = set(order[: order.index(module.replace(".", "_")) + 1])
        frozen = [parameter for key, parameter in named if key.partition(".")[0] in leading]
    else:
        inside = [index for index, (key, _) in enumerate(named) if key.startswith(f"{module}.")]
        frozen = [parameter for _, parameter in named[: max(inside, default=-1) + 1]]
    if not frozen:
        raise ConfigError(f"model.freeze: cannot find where the stages of {name} end (got {stages}); set 0")
    for parameter in frozen:
        parameter.requires_grad_(False)


def _freeze_norms(network: nn.Module, every: bool) -> None:
    """Replaces batch norms by frozen ones: all, or those of frozen layers."""
    from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            is_norm = isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm)
            if is_norm and (every or (child.weight is not None and not child.weight.requires_grad)):
                parent._modules[name] = freeze_batch_norm_2d(child)


def _cut(name: str, network: nn.Module, places: tuple[int, ...], nhwc: bool, first: int) -> tuple[Stages, Stages]:
    """Cuts a network before a map: the layers that make the earlier maps, and those that make it and the rest."""
    returned = getattr(network, "return_layers", None)
    if not returned or not isinstance(network, nn.ModuleDict):
        raise ConfigError(f"model.split: the stages of {name} do not run in sequence; set none, output or fpn")
    layers, ends = dict(network.items()), list(returned)
    wanted = [ends[place] for place in places]
    order = list(layers)
    at = order.index(wanted[first - 1]) + 1
    head = Stages({key: layers[key] for key in order[:at]}, tuple(wanted[:first]), nhwc)
    tail = Stages({key: layers[key] for key in order[at : order.index(wanted[-1]) + 1]}, tuple(wanted[first:]), nhwc)
    if not any(True for _ in tail.parameters()):
        raise ConfigError(f"model.split: the last stage of {name} has no weights; set none, output or fpn")
    return head, tail
