"""G-RCN: two-stage detectors whose classification and localization read different feature maps (arXiv 2012.03677).

Public names are imported when they are first used: torch takes seconds, and a mistake in a config is told before.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grcn.build import build_model as build_model
    from grcn.config.files import load_config as load_config
    from grcn.models.context import ContextAttention as ContextAttention
    from grcn.models.detector import Detector as Detector
    from grcn.models.features import FeatureSpec as FeatureSpec
    from grcn.models.resnet import RESNET_UNITS as RESNET_UNITS
    from grcn.models.resnet import SplitResNet as SplitResNet
    from grcn.models.roi_heads import RoIHeads as RoIHeads
    from grcn.models.rpn import RegionProposalNetwork as RegionProposalNetwork
    from grcn.models.vgg import VGG16_BLOCKS as VGG16_BLOCKS
    from grcn.models.vgg import SplitVGG as SplitVGG
    from grcn.models.weights import load_weights as load_weights
    from grcn.run.predict import load as load

__version__ = "0.1.0"

_MODULES = {
    "RESNET_UNITS": "models.resnet",
    "VGG16_BLOCKS": "models.vgg",
    "ContextAttention": "models.context",
    "Detector": "models.detector",
    "FeatureSpec": "models.features",
    "RegionProposalNetwork": "models.rpn",
    "RoIHeads": "models.roi_heads",
    "SplitResNet": "models.resnet",
    "SplitVGG": "models.vgg",
    "build_model": "build",
    "load": "run.predict",
    "load_config": "config.files",
    "load_weights": "models.weights",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
