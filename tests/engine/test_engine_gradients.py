"""Gradients of two processes with two images each are those of one process with all four."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import CONTEXT
from support import small_detector
from waiting import HANG

from grcn.engine import distributed
from grcn.engine.evaluate import move_images

SIZES = [(64, 96), (80, 48), (33, 100), (64, 64)]  # of images in one step: their canvas is larger than any of them
OBJECTS = {"usual": [2, 1, 3, 2], "one process without objects": [0, 0, 3, 2]}


def batch(objects: list[int], dtype: torch.dtype) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for number, ((height, width), count) in enumerate(zip(SIZES, objects, strict=True)):
        images.append(torch.rand(3, height, width, generator=generator, dtype=torch.float64).to(dtype))
        corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 12
        boxes = torch.cat([corners, corners + 8 + 10 * torch.rand(count, 2, generator=generator)], 1).to(dtype)
        labels = torch.randint(1, 5, (count,), generator=generator)
        target = {"boxes": boxes, "labels": labels, "rng_key": 1000 + number, "batch_sizes": SIZES}
        targets.append(target)
    return images, targets


def forget_the_canvas(targets: list[dict[str, Any]]) -> None:
    for target in targets:
        del target["batch_sizes"]


def sample_by_process(targets: list[dict[str, Any]]) -> None:
    for target in targets:
        target["rng_key"] = distributed.rank()


def gradients(
    rank: int, world: int, port: int, kind: str, dtype: torch.dtype, path: Path, spoil: Callable[..., None] | None
) -> None:
    """Is one process: writes the averaged gradients of one step of G-RCN with dropout."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.process_group("cpu", timeout=HANG):
        model = small_detector(split="conv5", loc_pool="none", context=("cls",), dropout=0.5).to(dtype).train()
        images, targets = batch(OBJECTS[kind], dtype)
        if spoil is not None:
            spoil(targets)
        share = slice(rank * 4 // world, (rank + 1) * 4 // world)
        replica = distributed.wrap(model)
        losses = replica(move_images(images[share], torch.device("cpu")), targets[share])
        torch.stack(list(losses.values())).sum().backward()
        if rank == 0:
            torch.save({name: weight.grad for name, weight in model.named_parameters()}, path)


def gradients_of(world: int, folder: Path, *args: Any) -> dict[str, torch.Tensor]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kind, dtype, spoil = args
    path = folder / f"{world}.pt"
    processes = [
        CONTEXT.Process(target=gradients, args=(rank, world, port, kind, dtype, path, spoil)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
        assert process.exitcode == 0
    return torch.load(path, weights_only=True)


def difference(folder: Path, *args: Any) -> float:
    """Returns the largest difference of any gradient, as a share of its largest value.

    A gradient that is zero but for rounding, as that of the keys' bias in an attention, counts as a millionth of the
    largest of all.
    """
    one, two = gradients_of(1, folder, *args), gradients_of(2, folder, *args)
    assert one.keys() == two.keys()
    sizes = {name: float(gradient.abs().max()) for name, gradient in one.items()}
    least = 1e-6 * max(sizes.values())
    return max(float((one[name] - two[name]).abs().max()) / max(sizes[name], least) for name in one)


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_two_processes_have_the_gradients_of_one(
    tmp_path: Path, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    assert difference(tmp_path, kind, dtype, None) < tolerance


@pytest.mark.parametrize("spoil", [forget_the_canvas, sample_by_process])
def test_without_a_part_of_the_promise_they_differ(tmp_path: Path, spoil: Callable[..., None]) -> None:
    """A control: without the common canvas, or with samples drawn by process, gradients are others."""
    assert difference(tmp_path, "usual", torch.float64, spoil) > 1e-3
