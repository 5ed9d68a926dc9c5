"""Distributed training under torchrun: devices, collectives and agreement; all of it also works in one process.

GPU tensors use NCCL, everything on the host uses gloo, so an agreement among the hosts never
synchronizes with a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grcn.engine.signals import Stopped, StopSignals, give_up
from grcn.errors import EnvironmentFault, UserError

T = TypeVar("T")


@contextmanager
def process_group(device: str = "auto", timeout: float = 1800.0) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, for the length of the context; yields this process's device.

    Args:
        device: ``cpu``, ``cuda`` (the one of this process), ``cuda:1``, or ``auto``: CUDA where
            there is any.
        timeout: seconds after which waiting for another process is an error. It must cover the
            longest time that one process works alone: scoring the detections of the whole test set.

    Raises:
        EnvironmentFault: the device is missing, or torchrun's variables contradict each other; from
            within, another process has exited or does not respond.
    """
    rank, world, local_rank = (_variable(name, default) for name, default in _TORCHRUN)
    if not 0 <= rank < world:
        raise EnvironmentFault(f"RANK is not below WORLD_SIZE (got {rank} of {world}); use torchrun")
    requested = _requested(device, world)
    if world == 1:
        yield _device(requested, local_rank)
        return

    # A machine without the devices still joins, so that all processes get its error.
    backend = "cpu:gloo,cuda:nccl" if requested.type == "cuda" and torch.cuda.device_count() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"process {rank} of {world} could not join the process group (got {_cause(error)}); check the output of "
            "the other ranks, or MASTER_ADDR and MASTER_PORT"
        ) from error
    try:
        yield together(lambda: _device(requested, local_rank))
    except SystemExit:  # all have agreed to stop; after another error some may never respond
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        # "Application timeout caused pair closure" is also from gloo.
        if not (isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "pair closure"))):
            raise
        what, remedy = "exited", "check its output"
        if "imed out" in str(error) or "timeout" in str(error):
            what, remedy = f"did not respond within {timeout:g} s", "check its output, or raise run.timeout"
        raise EnvironmentFault(
            f"process {rank} of {world}: another process {what} (got {_cause(error)}); {remedy}"
        ) from error
    dist.destroy_process_group()


_TORCHRUN = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise EnvironmentFault(f"{name} is not a whole number (got {text!r}); start the processes with torchrun")
    return int(text)


def _cause(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]


def local_device(name: str = "auto") -> torch.device:
    """Returns the device of that name for a single process; see :func:`process_group`."""
    return _device(_requested(name, 1), 0)


def _requested(name: str, world: int) -> torch.device:
    """Returns the requested device, with an index only if the name has one; the same in all processes."""
    if name == "auto":
        name = "cuda" if torch.cuda.device_count() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EnvironmentFault(f"no such device (got {name!r}); use auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and device.index is not None and world > 1:
        raise EnvironmentFault(f"{world} processes cannot share one device (got {name}); use cuda")
    return device


def _device(requested: torch.device, local_rank: int) -> torch.device:
    """Selects the device of this process."""
    if requested.type != "cuda":
        return requested
    index, count = local_rank if requested.index is None else requested.index, torch.cuda.device_count()
    if index >= count:
        raise EnvironmentFault(f"device cuda:{index} is missing (got {count} CUDA devices); use cpu or fewer processes")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """Returns the rank of this process; outside of the process group, torchrun's ``RANK``."""
    return dist.get_rank() if dist.is_initialized() else _variable(*_TORCHRUN[0])


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Returns whether this process is rank 0, which writes files and messages."""
    return rank() == 0


def check_joined() -> None:
    """Makes sure that a process that torchrun started as one of several has joined the others.

    Raises:
        RuntimeError: it has not, and would train alone on all data.
    """
    world = _variable("WORLD_SIZE", 1)
    if world > 1 and not dist.is_initialized():
        raise RuntimeError(
            f"torchrun started {world} processes, which have not joined; put the training into "
            "`with grcn.engine.distributed.process_group():`"
        )


def wrap(model: nn.Module) -> nn.Module:
    """Returns the module to call in training, which averages gradients over processes.

    Unused parameters are not searched for: each trained one takes part in the losses of every step,
    times zero if need be (an image without boxes). Frozen ones are left alone.
    """
    if world_size() == 1:
        return model
    # DDP warns about the gradients of 1x1 convolutions, whose strides differ but mean the same order; harmless.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def mean(values: Tensor) -> Tensor:
    """Averages a tensor over the processes. On a GPU it does not synchronize with the host."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def maximum(value: int) -> int:
    """Returns the largest of the processes' values to all of them, without synchronizing with a GPU."""
    if world_size() == 1:
        return value
    agreed = torch.tensor(value)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return int(agreed)


def gather(value: T) -> list[T]:
    """Collects one picklable value per process, in order of rank, for all of them."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def raise_if_stopped(stop: StopSignals | None) -> None:
    """Raises :class:`Stopped` in all processes after a signal to one of them; for use where nothing needs saving."""
    if code := maximum(0 if stop is None else stop.code):
        give_up(code)


def together(function: Callable[[], T]) -> T:
    """Calls a function in each process; if it fails in some, all raise the error of the lowest such rank.

    For work that each process does before they start to cooperate: none waits for one that has
    failed, and one message is shown. The function itself must not wait for other processes.
    """
    if world_size() == 1:
        return function()
    result, own = _attempt(function)
    for error in gather(own):
        if error is not None:
            raise _shared(error)
    return result


def check_same(facts: dict[str, str]) -> None:
    """Makes sure that these facts, and the version of torch, are the same in all processes.

    Raises:
        EnvironmentFault: a process differs from rank 0.
    """
    everyone = gather({**facts, "version of torch": str(torch.__version__)})
    for number, other in enumerate(everyone):
        differing = [name for name, fact in other.items() if fact != everyone[0][name]]
        if differing:
            what = ", ".join(differing)
            raise _shared(EnvironmentFault(f"process {number} differs from process 0 in {what}; give all the same"))


def on_main(function: Callable[[], T]) -> T:
    """Calls a function in rank 0; all processes get its result or its error.

    For work that must happen once, such as reading or writing a file: the others wait, and none
    continues after a failure.
    """
    if world_size() == 1:
        return function()
    outcome: list[Any] = list(_attempt(function)) if is_main() else [None, None]
    dist.broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        raise _shared(error)
    return result


def _attempt(function: Callable[[], Any]) -> tuple[Any, UserError | OSError | Stopped | None]:
    try:
        return function(), None
    except (UserError, OSError, Stopped) as error:
        return None, error


def _shared(error: BaseException) -> BaseException:
    """Marks an error that all processes raise and that only one should print."""
    error.shared = True  # type: ignore[attr-defined]
    return error
