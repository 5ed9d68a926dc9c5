"""Batches for training and evaluation, in an order that only the seed and the step decide.

Sample number g of a training run (step x batch + slot) has its image, its flip and its random key
from hashes of the seed and g. So the batches are the same for any number of workers and processes,
and a resumed run needs no more than its step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from grcn import rng
from grcn.data.table import Table
from grcn.data.transforms import horizontal_flip
from grcn.errors import ConfigError, DataError, UserError

ReadImage = Callable[[int], Tensor]

_WATCH = 2.0  # seconds between two looks at whether the main process is still there


def train_batches(
    table: Table,
    read_image: ReadImage,
    *,
    seed: int,
    batch: int,
    steps: int,
    start_step: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    flip: float = 0.5,
    drop_empty: bool = True,
    pin_memory: bool = False,
    timeout: float = 0.0,
) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
    """Yields the micro-batches of one process, ``accumulate`` of them for every step.

    Each epoch goes through the usable images once, in a new order. Crowd regions and difficult
    objects are left out. A batch is a list of uint8 images [3, H, W] and a list of targets::

        boxes       float32 [n, 4]   absolute xyxy
        labels      int64 [n]        1..C
        area        float32 [n]
        iscrowd     int64 [n]        0
        difficult   bool [n]         False
        image_id    int64 scalar     COCO's id; elsewhere the row of the table
        rng_key     int64 scalar     hash of (seed, g); what is drawn for the image derives from it
        batch_sizes list of (h, w)   all images of the step, over all processes and micro-batches

    Args:
        read_image: row -> uint8 [3, H, W]; runs in the workers.
        batch: images of one optimizer step, over all processes and micro-batches.
        steps: the step to stop before.
        start_step: the first step; batches equal those of a run that began at 0.
        accumulate: micro-batches of one process in a step.
        workers: processes that read images; 0 reads in this one.
        flip: probability that an image is mirrored.
        drop_empty: leave out images that have no object to train on.
        pin_memory: put images into page-locked memory, from where a GPU fetches them faster.
        timeout: seconds to wait for a worker before a RuntimeError; 0 waits for ever.

    Raises:
        ConfigError: the micro-batches do not divide ``batch``.
        DataError: there is no object to train on; later, whatever ``read_image`` raises.
    """
    if batch % (world * accumulate):
        got = f"got batch {batch}, {world} processes, accumulate {accumulate}"
        raise ConfigError(f"train.batch: does not divide evenly ({got}); use a multiple")
    share = batch // (world * accumulate)
    rows = _usable_rows(table, drop_empty)

    @lru_cache(maxsize=2)  # a step may reach into the next epoch
    def order(epoch: int) -> np.ndarray:
        return rows[rng.permutation(len(rows), seed, rng.ORDER, epoch)]

    def samples_of(step: int) -> list[_Sample]:
        numbers = range(step * batch, (step + 1) * batch)
        chosen = [int(order(g // len(rows))[g % len(rows)]) for g in numbers]
        sizes = [(height, width) for height, width in table.sizes[chosen].tolist()]
        return [
            _Sample(row, rng.uniform(seed, rng.FLIP, g) < flip, rng.hash_int(seed, rng.SAMPLE, g), sizes)
            for row, g in zip(chosen, numbers, strict=True)
        ]

    def micro_batches() -> Iterator[list[_Sample]]:
        for step in range(start_step, steps):
            samples = samples_of(step)
            for micro_batch in range(accumulate):
                first = (micro_batch * world + rank) * share
                yield samples[first : first + share]

    read = partial(_read_sample, table, read_image)
    return (_collate(pairs) for pairs in _load(read, micro_batches(), workers, pin_memory, timeout))


def eval_batches(
    table: Table,
    read_image: ReadImage,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = 0.0,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yields every image once over all processes, one at a time: its row and uint8 [3, H, W].

    Args:
        read_image: row -> uint8 [3, H, W]; runs in the workers.
        workers: processes that read images; 0 reads in this one.
        pin_memory: put images into page-locked memory.
        timeout: seconds to wait for a worker before a RuntimeError; 0 waits for ever.

    Raises:
        DataError: whatever ``read_image`` raises.
    """
    rows = range(rank, len(table), world)
    read = partial(_read_row, read_image)
    for pairs in _load(read, ([row] for row in rows), workers, pin_memory, timeout):
        yield [row for _, row in pairs], [image for image, _ in pairs]


class _Sample(NamedTuple):
    """What a worker needs to know to make one image and its target."""

    row: int
    mirrored: bool
    rng_key: int
    batch_sizes: list[tuple[int, int]]


def _usable_rows(table: Table, drop_empty: bool) -> np.ndarray:
    trained_on = ~(table.iscrowd | table.difficult)
    counts = np.diff(np.append(0, np.cumsum(trained_on))[table.offsets])
    if not trained_on.any():
        raise DataError(
            f"{table.name}: no object to train on (got {len(table)} images, {len(table.boxes)} "
            "objects that are crowd or difficult); add annotations"
        )
    return np.flatnonzero(counts) if drop_empty else np.arange(len(table))


def _read_sample(table: Table, read_image: ReadImage, sample: _Sample) -> tuple[Tensor, dict[str, Any]]:
    """Makes one image and its target; runs in a worker.

    The target's fields stay numpy arrays, which cross to the main process in one message; every
    tensor would take a file descriptor of its own.
    """
    objects = table.objects(sample.row)
    keep = ~(table.iscrowd[objects] | table.difficult[objects])
    image = read_image(sample.row)
    boxes = torch.from_numpy(table.boxes[objects][keep])
    if sample.mirrored:
        image, boxes = horizontal_flip(image, boxes)
    has_ids = table.image_ids.dtype.kind == "i"
    target = {
        "boxes": boxes.numpy().astype(np.float32),
        "labels": table.labels[objects][keep].astype(np.int64),
        "area": table.area[objects][keep],
        "iscrowd": table.iscrowd[objects][keep].astype(np.int64),
        "difficult": table.difficult[objects][keep],
        "image_id": np.array(table.image_ids[sample.row] if has_ids else sample.row, np.int64),
        "rng_key": np.array(sample.rng_key, np.int64),
        "batch_sizes": sample.batch_sizes,
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


class _Packed(NamedTuple):
    """The images of a batch in one buffer, and what belongs to them.

    A tensor crosses to the main process in a file of its own, which for small images takes longer than to draw them.
    """

    buffer: Tensor  # uint8
    layouts: list[tuple[tuple[int, ...], tuple[int, ...], int]]  # of each image: shape, strides, where it begins
    others: list[Any]

    @classmethod
    def pack(cls, pairs: list[tuple[Tensor, Any]]) -> _Packed:
        """Copies images next to each other; the order of their pixels in memory stays."""
        layouts = []
        end = 0
        for image, _ in pairs:
            if image.dtype != torch.uint8:
                raise TypeError(f"read_image must return uint8 (got {image.dtype})")
            layouts.append((tuple(image.shape), torch.empty_like(image, device="meta").stride(), end))
            end += image.numel()
        packed = cls(torch.empty(end, dtype=torch.uint8), layouts, [other for _, other in pairs])
        for (slot, _), (image, _) in zip(packed.pairs(), pairs, strict=True):
            slot.copy_(image)
        return packed

    def pairs(self) -> list[tuple[Tensor, Any]]:
        """Returns the images, as parts of the buffer, with what belongs to each."""
        images = [self.buffer.as_strided(*layout) for layout in self.layouts]
        return list(zip(images, self.others, strict=True))


class _Reader(Dataset):
    """Reads the items of one batch, in a worker.

    A user's mistake is returned, not raised: a worker's exceptions arrive wrapped in tracebacks.
    """

    def __init__(self, read: Callable[[Any], tuple[Tensor, Any]]) -> None:
        self.read = read

    def __getitem__(self, items: list[Any]) -> _Packed | UserError:
        try:
            return _Packed.pack([self.read(item) for item in items])
        except UserError as error:
            return error


def _load(
    read: Callable[[Any], tuple[Tensor, Any]],
    batches: Iterator[list[Any]],
    workers: int,
    pin_memory: bool,
    timeout: float,
) -> Iterator[list[tuple[Tensor, Any]]]:
    """Applies ``read``, item -> image and more, to the items of each batch, ahead of time in worker processes."""
    loader = DataLoader(
        _Reader(read),
        batch_size=None,  # the sampler already yields batches
        sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0.0,
        worker_init_fn=_start_worker,
        # Workers that are forked share the pages of the table.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # The loader draws a seed when it starts: not from the global generator.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch.pairs()


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Leaves signals to the main process, which finishes its step before it ends its workers."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    torch.set_num_threads(1)
    sys.excepthook = _say_nothing_of_the_parent


def _say_nothing_of_the_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Leaves out that the main process ended while it fetched an image: it has told why itself."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _obey_parent() -> None:
    """Ends this worker at a SIGTERM of its parent, of which a job manager sends one to every process, and after it.

    The loader's own watch takes whoever is the parent when it begins, at times the adopter of an orphan.
    """
    parent = multiprocessing.parent_process()
    while parent and os.getppid() == parent.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, _WATCH)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
