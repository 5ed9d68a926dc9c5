"""Yields batches for training and evaluation, in an order that depends on the seed and the step only.

Sample number g of a training run (step x batch + slot) has its image, its augmentation and its random key
from hashes of the seed and g. So the batches are the same for any number of workers and processes,
and a resumed run needs no more than its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grcn import rng
from grcn.data.annotations import Annotations
from grcn.data.augment import Augmentation, HorizontalFlip, augmented_size, keep_objects, key_of
from grcn.data.dataset import DetectionDataset, ReadImage
from grcn.data.workers import read_ahead
from grcn.errors import ConfigError, DataError

TrainBatch = tuple[list[Tensor], list[dict[str, Any]]]


def train_batches(
    dataset: DetectionDataset,
    *,
    seed: int,
    batch: int,
    steps: int,
    start_step: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    augment: Sequence[Augmentation] = (HorizontalFlip(),),
    drop_empty: bool = True,
    pin_memory: bool = False,
    timeout: float = 0.0,
) -> Iterator[TrainBatch]:
    """Yields the micro-batches of one process, ``accumulate`` of them for every step.

    Each epoch goes through the usable images once, in a new order. Crowd regions and difficult
    objects are left out. A batch is a list of uint8 images [3, H, W] and a list of targets::

        boxes       float32 [n, 4]   absolute xyxy
        labels      int64 [n]        1..C
        area        float32 [n]
        iscrowd     int64 [n]        0
        difficult   bool [n]         False
        image_id    int64 scalar     COCO's id; elsewhere the row of the table
        augmented   tuple of str     what was done to the image
        rng_key     int              hash of (seed, g), from which all draws for the image derive
        batch_sizes list of (h, w)   all images of the step, over all processes and micro-batches
        batch_keys  list of int      their ``rng_key``

    Args:
        dataset: the training set; its images are read in the workers.
        batch: images of one optimizer step, over all processes and micro-batches.
        steps: the step to stop before.
        start_step: the first step; batches equal those of a run that began at 0.
        accumulate: micro-batches of one process in a step.
        workers: processes that read images; 0 reads in this one.
        augment: applied in this order, in the workers.
        drop_empty: leave out images that have no object to train on.
        pin_memory: put images into page-locked memory, from which a GPU copies faster.
        timeout: seconds to wait for a worker before a RuntimeError; 0 waits forever.

    Raises:
        ConfigError: the micro-batches do not divide ``batch``.
        DataError: there is no object to train on; later, an image cannot be read, or an augmentation returns another
            size than it promised.
    """
    if batch % (world * accumulate):
        got = f"got batch {batch}, {world} processes, accumulate {accumulate}"
        raise ConfigError(f"train.batch: does not divide evenly ({got}); use a multiple")
    share = batch // (world * accumulate)
    table = dataset.table
    rows = usable_rows(table, drop_empty)

    @lru_cache(maxsize=2)  # a step may reach into the next epoch
    def order(epoch: int) -> np.ndarray:
        return rows[rng.permutation(len(rows), seed, rng.ORDER, epoch)]

    def samples_of(step: int) -> list[_Sample]:
        numbers = range(step * batch, (step + 1) * batch)
        chosen = [int(order(g // len(rows))[g % len(rows)]) for g in numbers]
        sizes = [
            augmented_size(augment, (height, width), seed, g)
            for (height, width), g in zip(table.sizes[chosen].tolist(), numbers, strict=True)
        ]
        keys = [rng.hash_int(seed, rng.SAMPLE, g) for g in numbers]
        return [_Sample(row, g, key, sizes, keys) for row, g, key in zip(chosen, numbers, keys, strict=True)]

    def micro_batches() -> Iterator[list[_Sample]]:
        for step in range(start_step, steps):
            samples = samples_of(step)
            for micro_batch in range(accumulate):
                first = (micro_batch * world + rank) * share
                yield samples[first : first + share]

    read = partial(_read_sample, dataset, augment, seed)
    return (_collate(pairs) for pairs in read_ahead(read, micro_batches(), workers, pin_memory, timeout))


def eval_batches(
    dataset: DetectionDataset,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = 0.0,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yields every image once over all processes, one at a time: its row and uint8 [3, H, W].

    Args:
        dataset: its images are read in the workers.
        workers: processes that read images; 0 reads in this one.
        pin_memory: put images into page-locked memory.
        timeout: seconds to wait for a worker before a RuntimeError; 0 waits forever.

    Raises:
        DataError: an image cannot be read.
    """
    rows = range(rank, len(dataset), world)
    read = partial(_read_row, dataset.read_image)
    for pairs in read_ahead(read, ([row] for row in rows), workers, pin_memory, timeout):
        yield [row for _, row in pairs], [image for image, _ in pairs]


class _Sample(NamedTuple):
    """The input of a worker for one image and its target."""

    row: int
    number: int  # in the training
    rng_key: int
    batch_sizes: list[tuple[int, int]]
    batch_keys: list[int]


def usable_rows(table: Annotations, drop_empty: bool) -> np.ndarray:
    """Returns the images to train on: all, or those that have an object to train on.

    Raises:
        DataError: none has one.
    """
    trained_on = ~(table.iscrowd | table.difficult)
    counts = np.diff(np.append(0, np.cumsum(trained_on))[table.offsets])
    if not trained_on.any():
        raise DataError(
            f"{table.name}: no object to train on (got {len(table)} images, {len(table.boxes)} "
            "objects that are crowd or difficult); add annotations"
        )
    return np.flatnonzero(counts) if drop_empty else np.arange(len(table))


def _read_sample(
    dataset: DetectionDataset, augment: Sequence[Augmentation], seed: int, sample: _Sample
) -> tuple[Tensor, dict[str, Any]]:
    """Makes one image and its target; runs in a worker.

    The target's fields are numpy arrays, which go to the main process in one message; each tensor would take its own
    file descriptor.
    """
    objects = dataset.objects(sample.row)
    target: dict[str, Any] = {key: torch.from_numpy(value) for key, value in objects.items()}
    target = keep_objects(target, ~(target["iscrowd"].bool() | target["difficult"])) | {"augmented": ()}
    image = dataset.read_image(sample.row)
    for place, one in enumerate(augment):
        key = key_of(seed, sample.number, place)
        promised = one.size((image.shape[1], image.shape[2]), key)
        image, target = one(image, target, key)
        if tuple(image.shape[1:]) != tuple(promised):
            name = type(one).__name__
            raise DataError(
                f"augmentation {name}: returned an image of {list(image.shape[1:])} where its size() says "
                f"{list(promised)}; let both draw alike from the key"
            )
    target = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in target.items()}
    target |= {
        "boxes": target["boxes"].astype(np.float32),
        "rng_key": sample.rng_key,
        "batch_sizes": sample.batch_sizes,
        "batch_keys": sample.batch_keys,
    }
    return image, target


def _read_row(read_image: ReadImage, row: int) -> tuple[Tensor, int]:
    return read_image(row), row


def _collate(
    pairs: list[tuple[Tensor, dict[str, Any]]],
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images = [image for image, _ in pairs]
    targets = [
        {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in target.items()}
        for _, target in pairs
    ]
    return images, targets
