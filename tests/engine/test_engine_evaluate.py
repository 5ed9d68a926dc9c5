from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support import small_detector
from torch import Tensor
from toy_run import IMAGES, ToyDetector, evaluation_batches, tiny_faster_rcnn

from grcn.engine import distributed
from grcn.engine.evaluate import detect
from grcn.engine.signals import Stopped, StopSignals
from grcn.errors import INTERRUPTED, NonFiniteError

CPU = torch.device("cpu")


def test_packs_what_the_model_returns() -> None:
    model = ToyDetector()
    shuffled = sorted(evaluation_batches(), key=lambda item: -item[0][0])
    packed = detect(model, shuffled, CPU, progress=False)
    assert {key: values.dtype for key, values in packed.items()} == {
        "rows": np.int64,
        "boxes": np.float32,
        "scores": np.float32,
        "labels": np.int64,
    }
    expected = [(row, model([image.float() / 255])[0]) for [row], [image] in evaluation_batches()]
    assert packed["rows"].tolist() == [row for row, output in expected for _ in output["scores"]]
    for key in ("boxes", "scores", "labels"):
        torch.testing.assert_close(torch.from_numpy(packed[key]), torch.cat([output[key] for _, output in expected]))
    assert len(set(packed["rows"])) < IMAGES, "an image without detections is the case in point"


def test_torchvisions_detector_and_global_generator() -> None:
    model = tiny_faster_rcnn().train()
    before = torch.get_rng_state()
    packed = detect(model, evaluation_batches(), CPU, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert packed["boxes"].shape == (len(packed["rows"]), 4) and len(packed["rows"]) > 0
    assert all(weight.grad is None for weight in model.parameters())


def test_nothing_to_evaluate() -> None:
    packed = detect(ToyDetector(), [], CPU, progress=False)
    assert {key: values.shape for key, values in packed.items()} == {
        "rows": (0,),
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


def test_weights_or_scores_that_are_not_finite() -> None:
    model = ToyDetector()
    with torch.no_grad():
        model.frozen.bias[2] = torch.inf
    with pytest.raises(NonFiniteError, match="weights"):
        detect(model, evaluation_batches(), CPU, progress=False)
    image = torch.full((3, 32, 40), 1.0)
    image[1, 5, 5] = torch.nan
    image[0, 0, 0] = 1 / 255
    with pytest.raises(NonFiniteError, match="scores"):
        detect(ToyDetector(), [([0], [image])], CPU, progress=False)


def test_finite_weights_whose_scores_are_nan_detect_nothing() -> None:
    model = small_detector()
    assert len(detect(model, evaluation_batches(), CPU, progress=False)["rows"])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e20)
    assert not len(detect(model, evaluation_batches(), CPU, progress=False)["rows"])


def test_stops_between_images() -> None:
    read = 0

    def interrupted() -> Iterator[tuple[list[int], list[Tensor]]]:
        nonlocal read
        for item in evaluation_batches():
            read += 1
            if read == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield item

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with StopSignals() as stop, pytest.raises(Stopped) as caught:
        distributed.raise_if_stopped(stop)
        detect(ToyDetector(), interrupted(), CPU, stop=stop, progress=False)
    assert caught.value.code == INTERRUPTED
    assert read == 2
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Stopped):
        distributed.raise_if_stopped(stop)
