"""Defines the tables that several packages share; imports nothing, in particular not torch."""

# Channels of the convolutions of each block, conv1 to conv5 (Simonyan and Zisserman, configuration D).
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Channels of the tiny backbone's blocks, as multiples of its width.
TINY_BLOCKS = (1, 2, 4, 4, 4)
# The places where a VGG can be split, and the first block that then exists once per task.
VGG_SPLITS = {"conv3": 3, "conv4": 4, "conv5": 5}

# Residual units of conv2 to conv5; the last units of conv4 can be split off (He et al., Table 1).
RESNET_UNITS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "tiny_resnet": (1, 1, 3, 1)}
PYRAMID_MAPS = 5  # P2 to P6
# The places where a pyramid can be split, and the first layer that then exists once per task.
PYRAMID_SPLITS = {"output": "output2", "fpn": "lateral5", "conv5": "layer4_0", "conv4": "layer3_0"}
RESNET_WIDTH = 64  # channels of the first convolution; conv4 has 16 times as many, conv5 32 times

# The releases of torchvision, by backbone, with the name of the normalisation that each expects.
RELEASES = {
    "resnet50": {"IMAGENET1K_V1": "torchvision", "IMAGENET1K_V2": "torchvision"},
    "resnet101": {"IMAGENET1K_V1": "torchvision", "IMAGENET1K_V2": "torchvision"},
    "resnet50_fpn": dict.fromkeys(("IMAGENET1K_V1", "IMAGENET1K_V2", "COCO_V1", "COCO_V2"), "torchvision"),
    "resnet101_fpn": {"IMAGENET1K_V1": "torchvision", "IMAGENET1K_V2": "torchvision"},
    "vgg16": {"IMAGENET1K_V1": "torchvision", "IMAGENET1K_FEATURES": "caffe_rgb"},
}
NAMED_WEIGHTS = {entry: expected for entries in RELEASES.values() for entry, expected in entries.items()}
# Layouts of files of weights, as in ``caffe:FILE``.
WEIGHT_LAYOUTS = ("torchvision", "caffe")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

# Of the built-in images, by level; the order of levels and classes is part of the data.
SHAPES_CLASSES = {
    "flat": ("disc", "square", "triangle", "star", "cross", "crescent"),
    "full": ("sun", "moon", "lark", "owl", "boat", "cart", "beetle", "crate"),
}
