from grcn.build import build_model as build_model
from grcn.catalog import COCO_CLASSES as COCO_CLASSES
from grcn.catalog import RESNET_UNITS as RESNET_UNITS
from grcn.catalog import VGG16_BLOCKS as VGG16_BLOCKS
from grcn.catalog import VOC_CLASSES as VOC_CLASSES
from grcn.config.files import load_config as load_config
from grcn.models.context import ContextAttention as ContextAttention
from grcn.models.detector import Detector as Detector
from grcn.models.features import FeatureSpec as FeatureSpec
from grcn.models.pyramid import PyramidResNet as PyramidResNet
from grcn.models.resnet import SplitResNet as SplitResNet
from grcn.models.roi_heads import RoIHeads as RoIHeads
from grcn.models.rpn import RegionProposalNetwork as RegionProposalNetwork
from grcn.models.vgg import SplitVGG as SplitVGG
from grcn.models.weights import load_weights as load_weights
from grcn.run.load_detector import load as load

__version__: str
