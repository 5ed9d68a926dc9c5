"""G-RCN: two-stage detectors whose classification and localization read different feature maps (arXiv 2012.03677)."""

from .build import build_model
from .configfile import load_config
from .models.context import ContextAttention
from .models.detector import Detector
from .models.features import FeatureSpec
from .models.resnet import RESNET_UNITS, SplitResNet
from .models.roi_heads import RoIHeads
from .models.rpn import RegionProposalNetwork
from .models.vgg import VGG16_BLOCKS, SplitVGG
from .models.weights import load_weights

__version__ = "0.1.0"

__all__ = [
    "RESNET_UNITS",
    "VGG16_BLOCKS",
    "ContextAttention",
    "Detector",
    "FeatureSpec",
    "RegionProposalNetwork",
    "RoIHeads",
    "SplitResNet",
    "SplitVGG",
    "build_model",
    "load_config",
    "load_weights",
]
