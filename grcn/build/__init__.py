"""Builds model, data and training from a config. The parts themselves take plain arguments."""

from grcn.build.data import (
    build_augmentations,
    build_batches,
    build_test_split,
    build_train_split,
    class_names,
    limit_images,
    read_annotations,
    usual_classes,
)
from grcn.build.model import build_model
from grcn.build.training import Training, amp_dtype, build_optimizer, build_training

__all__ = [
    "Training",
    "amp_dtype",
    "build_augmentations",
    "build_batches",
    "build_model",
    "build_optimizer",
    "build_test_split",
    "build_train_split",
    "build_training",
    "class_names",
    "limit_images",
    "read_annotations",
    "usual_classes",
]
