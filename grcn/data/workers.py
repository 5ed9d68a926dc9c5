"""Reads images ahead of time in worker processes, which leave signals and errors to the main process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from grcn.errors import UserError

_WATCH = 2.0  # seconds between checks that the main process is still alive


def read_ahead(
    read: Callable[[Any], tuple[Tensor, Any]],
    batches: Iterator[list[Any]],
    workers: int,
    pin_memory: bool,
    timeout: float,
) -> Iterator[list[tuple[Tensor, Any]]]:
    """Applies ``read`` to the items of each batch, ahead of time in worker processes.

    Args:
        read: item -> uint8 image of any size, and its data, such as the target.
        batches: lists of items.
        workers: processes; 0 reads in this one, on demand.
        pin_memory: put images into page-locked memory.
        timeout: seconds to wait for a worker before a RuntimeError; 0 waits forever.

    Raises:
        UserError: as raised by ``read``.
    """
    loader = DataLoader(
        _Reader(read),
        batch_size=None,  # the sampler already yields batches
        sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0.0,
        worker_init_fn=_start_worker,
        # Forked workers share the pages of the table.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # The loader draws a seed when it starts: not from the global generator.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch.pairs()


class _Packed(NamedTuple):
    """The images of a batch in one buffer, each with its data.

    A tensor goes to the main process in its own file, which for small images takes longer than drawing them.
    """

    buffer: Tensor  # uint8
    layouts: list[tuple[tuple[int, ...], tuple[int, ...], int]]  # of each image: shape, strides, offset
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
        others = [other for _, other in pairs]
        first = pairs[0][0]
        own = first.stride() == layouts[0][1] and first.untyped_storage().nbytes() == end
        if len(pairs) == 1 and own:  # it already fills its own buffer
            return cls(first.as_strided((end,), (1,)), layouts, others)
        packed = cls(torch.empty(end, dtype=torch.uint8), layouts, others)
        for (slot, _), (image, _) in zip(packed.pairs(), pairs, strict=True):
            slot.copy_(image)
        return packed

    def pairs(self) -> list[tuple[Tensor, Any]]:
        """Returns the images, as views of the buffer, each with its data."""
        images = [
            self.buffer.as_strided(shape, strides, self.buffer.storage_offset() + start)
            for shape, strides, start in self.layouts
        ]
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


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Leaves signals to the main process, which finishes its step before it ends its workers."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # or the first collection would write to, and so copy, the pages of the main process's imports
    torch.set_num_threads(1)
    sys.excepthook = _say_nothing_of_the_parent


def _say_nothing_of_the_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Suppresses the error that the main process exited while fetching an image: it has reported why itself."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent() -> None:
    """Ends this worker on a SIGTERM from its parent, ignoring a job manager's to every process, or with its parent.

    The loader's own watch trusts whoever is the parent when it starts, at times the adopter of an orphan.
    """
    parent = multiprocessing.parent_process()
    while parent and os.getppid() == parent.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, _WATCH)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
