"""A run small enough to be killed often: a toy detector, its data and a program around the engine.

``python tests/toy_run.py '{"folder": "out", "steps": 40}'`` trains from the newest checkpoint in
the folder, if any.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from waiting import HANG

from grcn import errors
from grcn.engine import checkpoint, distributed
from grcn.engine.average import WeightAverage
from grcn.engine.evaluate import detect
from grcn.engine.recorder import Recorder
from grcn.engine.signals import StopSignals
from grcn.engine.train import learning_rate, train
from grcn.fileio import run_lock
from grcn.progress import start_logging

IMAGES = 5  # to evaluate on


class ToyDetector(nn.Module):
    """Guesses one box per image; has dropout, a frozen layer and torchvision's contract."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.box = nn.Linear(6, 4)
        self.score = nn.Linear(6, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        pooled = torch.stack([self.conv(image).relu().mean((1, 2)) for image in images])
        features = self.dropout(self.frozen(pooled) + pooled)
        boxes, scores = self.box(features), self.score(features)[:, 0]
        if targets is None:
            counts = [int(image[0, 0, 0] * 255) % 3 for image in images]  # 0, 1 or 2 detections
            return [
                {
                    "boxes": box.expand(count, 4),
                    "scores": score.sigmoid().expand(count),
                    "labels": torch.ones(count, dtype=torch.int64),
                }
                for box, score, count in zip(boxes, scores, counts, strict=True)
            ]
        found = torch.tensor([len(target["boxes"]) > 0 for target in targets]).to(scores)
        first = torch.stack([torch.cat([target["boxes"], boxes.new_zeros(1, 4)])[0] for target in targets])
        return {
            "loss_score": nn.functional.binary_cross_entropy_with_logits(scores, found),
            "loss_box": (found[:, None] * (boxes - first.to(boxes)).abs()).mean(),
        }


def tiny_faster_rcnn() -> FasterRCNN:
    """torchvision's detector on a backbone of two convolutions."""
    backbone: Any = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 8
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    return FasterRCNN(backbone, 3, 64, 64, rpn_anchor_generator=anchors, rpn_post_nms_top_n_train=50)


def batches(
    start_step: int = 0,
    batch: int = 4,
    accumulate: int = 1,
    double: bool = False,
    poison: int | None = None,
    pause: float = 0.0,
) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
    """Yields this process's micro-batches; image ``g`` of the run is the same however the run is
    divided.

    Every fourth image is without boxes; image ``poison`` is not a number.
    """
    rank, world = distributed.rank(), distributed.world_size()
    size = batch // (accumulate * world)
    step = start_step
    while True:
        for micro in range(accumulate):
            time.sleep(pause)
            first = step * batch + (micro * world + rank) * size
            samples = [_sample(number, double, number == poison) for number in range(first, first + size)]
            yield [image for image, _ in samples], [target for _, target in samples]
        step += 1


def _sample(number: int, double: bool, poisoned: bool) -> tuple[Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8, generator=generator)
    corners = torch.rand(number % 4, 2, generator=generator) * 10
    target = {
        "boxes": torch.cat([corners, corners + 16], 1),
        "labels": torch.ones(number % 4, dtype=torch.int64),
        "image_id": torch.tensor(number),
        "canvas": (32, 40),
    }
    if double or poisoned:
        image = image.double() / 255 if double else image.float() / 255
    if poisoned:
        image[0, 0, 0] = torch.nan
    return image, target


def evaluation_batches(double: bool = False) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yields this process's share of the images to evaluate on."""
    for row in range(distributed.rank(), IMAGES, distributed.world_size()):
        yield [row], [_sample(1004 + row, double, False)[0]]


def run(
    folder: str,
    steps: int = 40,
    batch: int = 4,
    accumulate: int = 1,
    double: bool = False,
    dropout: float = 0.0,
    detector: str = "toy",
    poison: int | None = None,
    checkpoint_every: int = 3,
    log_every: int = 5,
    eval_every: int = 10,
    pause: float = 0.0,
    ema: float | None = None,
) -> None:
    """Trains in ``folder``, continuing what is there; evaluations leave ``step_N.npz`` behind."""
    torch.set_num_threads(1)
    out = Path(folder)
    with StopSignals() as stop, distributed.process_group("cpu", timeout=HANG) as device:
        start_logging()
        with run_lock(out) if distributed.is_main() else nullcontext():
            torch.manual_seed(0)
            model = ToyDetector(dropout) if detector == "toy" else tiny_faster_rcnn()
            if double:
                model.double()
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=0.01, fused=True)
            found = distributed.on_main(lambda: checkpoint.newest(out / "checkpoints"))
            state = found[1] if found else None
            start = state["step"] if state else 0
            average = None if ema is None else WeightAverage(model, ema)

            def evaluate(step: int) -> dict[str, float]:
                detector = model if average is None else average.module
                detections = detect(detector, evaluation_batches(double), device, stop=stop, progress=False)
                np.savez(out / f"step_{step}.npz", allow_pickle=False, **detections)
                return {"mean_score": float(np.asarray(detections["scores"], np.float64).mean())}

            record = {"config": {"lr": 0.02, "name": "toy"}, "classes": ["thing"]}
            train(
                model,
                batches(start, batch, accumulate, double, poison, pause),
                optimizer,
                Recorder(out, state=state, record=record, log_every=log_every, best="mean_score"),
                steps=steps,
                lr_at=partial(learning_rate, lr=0.02, steps=steps, schedule="cosine", warmup=5),
                accumulate=accumulate,
                checkpoint_every=checkpoint_every,
                evaluate=evaluate if detector == "toy" else None,
                eval_every=eval_every,
                ema=average,
                stop=stop,
            )


def start(options: dict[str, Any], rank: int = 0, world: int = 1, port: int = 0) -> None:
    """Is the main function of one process of a run."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder = Path(options["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"stderr_{rank}.txt").open("a", buffering=1) as sys.stderr:
        errors.main(lambda: run(**options))


def messages(folder: Path) -> list[str]:
    """Returns what rank 0 wrote on stderr, without its progress bars."""
    lines = (folder / "stderr_0.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("train: ")]


def launch(options: dict[str, Any], world: int = 1) -> list[Any]:
    """Starts the processes of a run, forked from a server that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision.models.detection", "torch.distributed", "tqdm"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [context.Process(target=start, args=(options, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[Any]) -> list[int | None]:
    """Waits for the processes and returns their exit codes; one that hangs is killed."""
    for process in processes:
        process.join(HANG)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def results(folder: Path) -> dict[str, bytes]:
    """Reads what must not depend on interruptions: the newest checkpoint and the log."""
    newest = max((folder / "checkpoints").glob("step_*.pt"))
    return {
        "name": newest.name.encode(),
        "best": b" ".join(path.name.encode() for path in folder.glob("best-*.pt")),
        "state": newest.read_bytes(),
        "log": (folder / "metrics.jsonl").read_bytes(),
    }


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    errors.main(lambda: run(**arguments))
