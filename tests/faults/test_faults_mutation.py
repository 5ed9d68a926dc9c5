"""Files with bytes changed at random: each is read, trained on and scored, or refused in one line; no process dies."""

from __future__ import annotations

import json
import os
import random
import signal
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from damage import is_clear, mutate
from foreign import read_weights
from PIL import Image
from waiting import HANG

from grcn.build import build_model
from grcn.config.files import dump_config, load_config
from grcn.config.model_schema import ModelConfig
from grcn.data import coco, voc
from grcn.data import validate as packing
from grcn.data.annotations import Annotations
from grcn.data.dataset import DetectionDataset
from grcn.data.images import FileImages
from grcn.data.loader import train_batches
from grcn.engine import checkpoint
from grcn.engine.checkpoint import restore
from grcn.engine.evaluate import move_images
from grcn.errors import CheckpointError, UserError
from grcn.evaluation import coco as coco_protocol
from grcn.evaluation import voc as voc_protocol
from grcn.evaluation.diagnosis import diagnose
from grcn.models import detector

ROOT = Path(__file__).resolve().parents[2]
SECONDS = HANG  # a case may take; the alarm then kills its process
SIZE = (48, 64)
FORMATS = ("jpg", "png", "bmp", "gif", "tiff", "webp", "ppm")
BOXES = [[4, 5, 30, 20], [40, 8, 16, 30], [10, 12, 22, 22]]
XML = """<annotation>
  <filename>{stem}.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
  <object><name>cat</name><difficult>0</difficult>
    <bndbox><xmin>5</xmin><ymin>6</ymin><xmax>40</xmax><ymax>40.5</ymax></bndbox></object>
  <object><name>dog</name><difficult>1</difficult>
    <bndbox><xmin>20</xmin><ymin>3</ymin><xmax>60</xmax><ymax>30</ymax></bndbox></object>
</annotation>
"""
TINY = {
    "backbone": "tiny", "width": 4, "image": {"short": 48, "max": 64}, "anchors": {"sizes": [16, 32]},
    "rpn": {"channels": 8, "min_size": 0, "batch": 16}, "roi": {"batch": 8}, "head": {"dim": 8},
}  # fmt: skip


# ---------------------------------------------------------------- what is read, and how


def make(folder: Path) -> None:
    """Makes a data set in both layouts, results, a config and a checkpoint."""
    pixels = np.random.default_rng(0).integers(0, 255, (len(FORMATS), *SIZE, 3), dtype=np.uint8)
    for name in ("annotations", "train", "VOC/Annotations", "VOC/JPEGImages", "VOC/ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    annotations = []
    for number, image in enumerate(map(Image.fromarray, pixels)):
        image.save(folder / f"train/{number}.{FORMATS[number]}")
        image.save(folder / f"VOC/JPEGImages/{number}.jpg")
        (folder / f"VOC/Annotations/{number}.xml").write_text(XML.format(stem=number))
        one = {"id": number + 1, "image_id": number, "category_id": 3 + number % 2, "bbox": BOXES[number % 3]}
        annotations.append(one | {"area": 480.5, "iscrowd": 0})
    names = [path.name for path in sorted((folder / "train").iterdir())]
    document = {
        "images": [{"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(names)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": annotations,
    }
    results = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.05 * k}
        for k, one in enumerate(2 * annotations)
    ]
    (folder / "annotations/instances_train.json").write_text(json.dumps(document))
    (folder / "VOC/ImageSets/Main/train.txt").write_text("0\n1\n2\n")
    (folder / "detections.json").write_text(json.dumps(results))
    (folder / "c.yaml").write_text(dump_config(load_config(ROOT / "configs/shapes/grcn_tiny.yaml")))
    model = build_model(ModelConfig.model_validate(TINY), 3)
    state = {"format": checkpoint.FORMAT, "step": 1, "optimizer": {"state": {}, "param_groups": []}, "losses": []}
    checkpoint.save(folder, state | {"model": model.state_dict()}, 1).rename(folder / "model.pt")
    with zipfile.ZipFile(folder / "model.pt") as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        (folder / "data.pkl").write_bytes(archive.read(pickled))
    np.save(folder / "array.npy", np.arange(24, dtype=np.float32).reshape(2, 3, 4))


def train_on(data: Annotations) -> None:
    """Reads all images, and does one step of training on two of them."""
    images = FileImages(data)
    for row in range(len(data)):
        images(row)
    batch, targets = next(train_batches(DetectionDataset(data, images), seed=0, batch=2, steps=1))
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate(TINY), len(data.classes) + 1).train()
    losses = model(move_images(batch, torch.device("cpu")), targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite(), f"trained on what makes the loss {losses}"


def read_coco(folder: Path) -> None:
    train_on(coco.load(folder, ["train"]))


def read_voc(folder: Path) -> None:
    train_on(voc.load(folder, ["VOC/train"]))


def read_results(folder: Path) -> None:
    data = coco.load(folder, ["train"])
    found = coco.read_detections(folder / "detections.json", data)
    metrics: dict[str, Any] = {}
    for evaluate in (voc_protocol.evaluate, coco_protocol.evaluate):
        metrics |= evaluate(data, found)["metrics"]
    assert all(value is None or 0 <= value <= 1 for value in metrics.values()), metrics
    diagnose(data, found, metrics)


def read_config(folder: Path) -> None:
    load_config(folder / "c.yaml")


def read_checkpoint(folder: Path) -> None:
    model = build_model(ModelConfig.model_validate(TINY), 3)
    restore(checkpoint.load(folder / "model.pt"), model)


def read_pickle(folder: Path) -> None:
    """Reads a checkpoint whose pickle is changed and whose checksums fit, as an attacker would make them."""
    with zipfile.ZipFile(folder / "model.pt") as good, zipfile.ZipFile(folder / "forged.pt", "w") as archive:
        for name in good.namelist():
            changed = name.endswith("data.pkl")
            archive.writestr(name, (folder / "data.pkl").read_bytes() if changed else good.read(name))
    restore(checkpoint.load(folder / "forged.pt"), build_model(ModelConfig.model_validate(TINY), 3))


def read_array(folder: Path) -> None:
    """Reads weights whose arrays are changed and whose checksums fit."""
    with zipfile.ZipFile(folder / "forged.npz", "w") as archive:
        archive.write(folder / "array.npy", "features.0.weight.npy")
    try:
        read_weights(f"torchvision:{folder / 'forged.npz'}")
    except CheckpointError as error:
        if "features.0.bias" not in str(error):  # the array is well, and the others are missing
            raise


READERS: dict[str, Callable[[Path], None]] = {
    "annotations/instances_train.json": read_coco,
    **{f"train/{number}.{ending}": read_coco for number, ending in enumerate(FORMATS)},
    "VOC/Annotations/1.xml": read_voc,
    "VOC/ImageSets/Main/train.txt": read_voc,
    "detections.json": read_results,
    "c.yaml": read_config,
    "model.pt": read_checkpoint,
    "data.pkl": read_pickle,
    "array.npy": read_array,
}


# ---------------------------------------------------------------- in processes of their own


def attempt(name: str, folder: Path) -> str:
    """Reads the files of a case; returns "read", "refused" or what went wrong."""
    try:
        READERS[name](folder)
    except UserError as error:
        lines = str(error).split("\n") if name.endswith(".yaml") else [str(error)]
        unclear = [line for line in lines if not is_clear(line)]
        return f"not a clear line: {unclear[0]!r}" if unclear else "refused"
    except BaseException:
        return traceback.format_exc()
    return "read"


def read_many(name: str, folder: Path, seeds: range, log: Path, patch: Callable[[], None] | None) -> None:
    """Runs as one process: reads mutations of a file, and writes the outcome of each; number -1 changes nothing."""
    os.dup2(os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT, 0o644), 2)
    torch.set_num_threads(1)
    if patch is not None:
        patch()
    good = (folder / name).read_bytes()
    with log.open("a", buffering=1) as file:
        for seed in seeds:
            (folder / name).write_bytes(mutate(good, random.Random(f"{name} {seed}")) if seed >= 0 else good)
            file.write(f"{json.dumps([seed, 'begun'])}\n")
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            fate = attempt(name, folder)
            signal.setitimer(signal.ITIMER_REAL, 0)
            file.write(f"{json.dumps([seed, fate])}\n")
    (folder / name).write_bytes(good)


def fates(
    name: str, folder: Path, count: int, patch: Callable[[], None] | None = None, first: int = 0
) -> dict[int, str]:
    """Returns the outcome of each mutation of a file; a process that dies names its case, and the next continues."""
    found: dict[int, str] = {}
    log, good = folder / "log.jsonl", (folder / name).read_bytes()
    while len(found) < count:
        log.unlink(missing_ok=True)
        seeds = range(first + len(found), first + count)
        process = programs.CONTEXT.Process(target=read_many, args=(name, folder, seeds, log, patch))
        process.start()
        process.join()
        (folder / name).write_bytes(good)
        found |= dict(json.loads(line) for line in log.read_text().splitlines())
        if process.exitcode:
            found[max(found)] = f"died: {signal.Signals(-process.exitcode).name if process.exitcode < 0 else 'exit'}"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused(
    folder: Path, faults: int, record_property: Callable[[str, object], None], name: str
) -> None:
    READERS[name](folder)
    count = 200 if faults > 1 else 8
    found = fates(name, folder, count)
    wrong = {seed: fate for seed, fate in found.items() if fate not in ("read", "refused")}
    assert not wrong, f"{len(wrong)} of {count}\n" + "\n".join(f"seed {seed}: {fate}" for seed, fate in wrong.items())
    refused = list(found.values()).count("refused")
    record_property(
        "faults", f"mutated {name}: {refused} of {count} refused, {count - refused} read, 0 deaths by signal"
    )


# ---------------------------------------------------------------- controls


def with_a_box_that_is_no_number() -> None:
    def unchecked(name: str, boxes: np.ndarray, *rest: object) -> np.ndarray:
        boxes[:, 0] = np.nan
        return np.arange(len(boxes))

    packing._check_boxes = unchecked
    detector.check_targets = lambda *args: None


def without_the_image_check() -> None:
    from grcn.data import images as transforms

    transforms._BROKEN = ()


def test_without_the_check_of_boxes_a_nan_is_trained_on(folder: Path) -> None:
    (fate,) = fates("annotations/instances_train.json", folder, 1, with_a_box_that_is_no_number, first=-1).values()
    assert fate.startswith("died: SIG") or "what makes the loss" in fate, fate  # which, is the operator's affair


def test_without_the_check_of_images_a_mutation_is_a_traceback(folder: Path) -> None:
    found = fates("train/1.png", folder, 13, without_the_image_check)
    assert any("Traceback" in fate for fate in found.values())


def stuck(folder: Path) -> None:
    while True:
        pass


def killed(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def reader_is_stuck() -> None:
    global SECONDS
    SECONDS, READERS["c.yaml"] = 1, stuck


def reader_is_killed() -> None:
    READERS["c.yaml"] = killed


@pytest.mark.parametrize(("patch", "name"), [(reader_is_stuck, "SIGALRM"), (reader_is_killed, "SIGSEGV")])
def test_a_process_that_dies_or_hangs_is_seen(folder: Path, patch: Callable[[], None], name: str) -> None:
    assert fates("c.yaml", folder, 2, patch) == {0: f"died: {name}", 1: f"died: {name}"}
