from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from waiting import HANG

from grcn import rng
from grcn.data.annotations import Annotations
from grcn.data.augment import HorizontalFlip
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import eval_batches, train_batches
from grcn.data.validate import pack
from grcn.errors import ConfigError, DataError

SEED = 5


@pytest.fixture
def table() -> Annotations:
    """Eleven images; number 3 has no objects, 7 only a crowd, 9 only a difficult one."""
    rows = [row for row in range(11) for _ in range(row % 3 + 1) if row not in (3, 7, 9)] + [7, 9]
    corner = np.arange(len(rows)) % 5 + 0.5
    return pack(
        "eleven",
        ["cat", "dog"],
        image_ids=[100 + row for row in range(11)],
        sizes=[(20 + row, 30 + row) for row in range(11)],
        rows=rows,
        boxes=np.stack([corner, corner, corner + 9.25, corner + 4], 1),
        labels=np.arange(len(rows)) % 2 + 1,
        area=np.arange(len(rows)) + 1.0,
        iscrowd=[row == 7 or (row == 10 and k % 2) for k, row in enumerate(rows)],
        difficult=[row == 9 for row in rows],
    )


class Images:
    """Images whose pixels encode the row and the column."""

    def __init__(self, table: Annotations) -> None:
        self.sizes = table.sizes

    def __call__(self, row: int) -> Tensor:
        height, width = self.sizes[row].tolist()
        image = torch.full((3, height, width), row, dtype=torch.uint8)
        image[1] = torch.arange(width, dtype=torch.uint8)
        return image


def batches(table: Annotations, **options: Any) -> list[tuple[list[Tensor], list[dict[str, Any]]]]:
    defaults = {"seed": SEED, "batch": 4, "steps": 6}
    return list(train_batches(DetectionDataset(table, Images(table)), **(defaults | options)))


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second) > 0
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert all(map(torch.equal, images, other_images))
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            plain = {"batch_sizes", "batch_keys", "augmented", "rng_key"}
            assert all(target[key] == other[key] for key in plain)
            for key in target.keys() - plain:
                assert target[key].dtype == other[key].dtype
                assert torch.equal(target[key], other[key])


def test_batches_are_what_the_formula_says(table):
    usable = [row for row in range(11) if row not in (3, 7, 9)]
    seen = 0
    flips = set()
    for step, (images, targets) in enumerate(batches(table)):
        for slot, (image, target) in enumerate(zip(images, targets, strict=True)):
            g = 4 * step + slot
            epoch, position = divmod(g, len(usable))
            row = usable[rng.permutation(len(usable), SEED, rng.ORDER, epoch)[position]]
            flipped = rng.uniform(SEED, rng.AUGMENT, g) < 0.5
            assert image[0, 0, 0] == row
            assert target["image_id"] == 100 + row
            assert target["rng_key"] == rng.hash_int(SEED, rng.SAMPLE, g)
            width = int(table.sizes[row, 1])
            assert image[1, 0, 0] == (width - 1 if flipped else 0)
            assert target["augmented"] == (("flipped",) if flipped else ())
            objects = table.objects(row)
            keep = ~(table.iscrowd[objects] | table.difficult[objects])
            expected = table.boxes[objects][keep].astype(np.float32)
            if flipped:
                expected[:, [0, 2]] = width - expected[:, [2, 0]]
            assert target["boxes"].tolist() == expected.tolist()
            assert target["labels"].tolist() == table.labels[objects][keep].tolist()
            assert target["area"].tolist() == table.area[objects][keep].tolist()
            flips.add(flipped)
            seen += 1
    assert seen == 24
    assert flips == {True, False}


def test_targets_have_torchvisions_types(table):
    images, targets = batches(table)[0]
    assert len(images) == len(targets) == 4
    for image, target in zip(images, targets, strict=True):
        count = len(target["labels"])
        assert image.dtype == torch.uint8
        assert target["batch_sizes"] == [tuple(other.shape[1:]) for other in images]
        assert isinstance(target["rng_key"], int)
        for key in ("batch_sizes", "batch_keys", "augmented", "rng_key"):
            del target[key]
        assert {key: (value.dtype, tuple(value.shape)) for key, value in target.items()} == {
            "boxes": (torch.float32, (count, 4)),
            "labels": (torch.int64, (count,)),
            "image_id": (torch.int64, ()),
            "area": (torch.float32, (count,)),
            "iscrowd": (torch.int64, (count,)),
            "difficult": (torch.bool, (count,)),
        }


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(table, workers):
    assert_same(batches(table), batches(table, workers=workers))


def test_a_resumed_run_sees_the_batches_of_a_straight_one(table):
    straight = batches(table)
    for start in (1, 4):
        assert_same(straight[start:], batches(table, start_step=start))
    assert batches(table, start_step=6) == []


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_the_slots(table, world, accumulate):
    whole = batches(table)
    parts = [batches(table, world=world, rank=r, accumulate=accumulate) for r in range(world)]
    joined = []
    for step in range(6):
        images: list[Tensor] = []
        targets: list[dict[str, Any]] = []
        for micro_batch in range(accumulate):
            for rank in range(world):
                more_images, more_targets = parts[rank][step * accumulate + micro_batch]
                assert len(more_images) == 4 // (world * accumulate)
                images += more_images
                targets += more_targets
        joined.append((images, targets))
    assert_same(whole, joined)


def test_every_epoch_is_another_permutation(table):
    images = [image for images, _ in batches(table, batch=8, steps=10) for image in images]
    rows = [int(image[0, 0, 0]) for image in images]
    epochs = [rows[k : k + 8] for k in range(0, 80, 8)]
    assert all(sorted(epoch) == [0, 1, 2, 4, 5, 6, 8, 10] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    other = batches(table, batch=8, steps=1, seed=6)[0][0]
    assert [int(image[0, 0, 0]) for image in other] != epochs[0]


def test_a_step_may_be_longer_than_the_data_set(table):
    images, _ = batches(table, batch=24, steps=1)[0]
    assert set(Counter(int(image[0, 0, 0]) for image in images).values()) == {3}


class Layouts(Images):
    """Images that lie in memory in every way: as decoded, row by row, with gaps, in a larger one."""

    def __call__(self, row: int) -> Tensor:
        image = super().__call__(row)
        layouts = [image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1), image.repeat(1, 1, 2)[..., ::2]]
        return [*layouts, torch.stack([image, image])[1]][row % 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_pixels_keep_their_order_in_memory(table, workers):
    for batch in (1, 8):
        loader = train_batches(
            DetectionDataset(table, Layouts(table)), seed=1, batch=batch, steps=8 // batch, workers=workers, augment=()
        )
        for images, targets in loader:
            assert len({image.untyped_storage().data_ptr() for image in images}) == 1
            for image, target in zip(images, targets, strict=True):
                own = Layouts(table)(int(target["image_id"]) - 100)
                assert image.stride() == torch.empty_like(own).stride()
                assert torch.equal(image, own)


def test_images_are_bytes(table):
    with pytest.raises(TypeError, match=r"read_image must return uint8 \(got torch.float32\)"):
        next(train_batches(DetectionDataset(table, lambda row: torch.zeros(3, 30, 30)), seed=1, batch=2, steps=1))


READ_MUCH = """
import multiprocessing, signal
import numpy as np, torch
from pathlib import Path
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import train_batches
from grcn.data.validate import pack

def private_memory(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size.split()[0]) for name, size in (line.split(":", 1) for line in lines)}
    return 1024 * (sizes["Private_Clean"] + sizes["Private_Dirty"])

images, objects = 10_000, 1_000_000
table = pack(
    "big", ["cat"], image_ids=range(images), sizes=np.full((images, 2), 8), rows=np.arange(objects) % images,
    boxes=np.tile([1.0, 2.0, 3.0, 4.0], (objects, 1)), labels=np.ones(objects, int),
)
idle = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
idle.start()
image = torch.zeros(3, 8, 8, dtype=torch.uint8)
loader = train_batches(DetectionDataset(table, lambda row: image), seed=1, batch=100, steps=200, workers=1)
for _ in range(10):
    next(loader)
(worker,) = set(multiprocessing.active_children()) - {idle}
before = private_memory(worker.pid)
for _ in range(180):
    next(loader)
print(table.boxes.nbytes, private_memory(worker.pid) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory")
def test_workers_do_not_grow_while_they_read():
    """A page is private to a worker once the main process has written to its own copy, so an idle child holds
    every page as well: what is private then was written by the worker."""
    output = subprocess.check_output([sys.executable, "-c", READ_MUCH], text=True, timeout=HANG)
    boxes, growth = map(int, output.split())
    assert growth < 8e6 < boxes


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_the_share_of_flips(table, flip, expected):
    images = [image for images, _ in batches(table, augment=[HorizontalFlip(flip)]) for image in images]
    assert {bool(image[1, 0, 0] > image[1, 0, -1]) for image in images} == expected


def test_images_without_objects_can_stay(table):
    empty = {3, 7, 9}
    found = {}
    for images, targets in batches(table, batch=11, steps=1, drop_empty=False):
        found = {int(image[0, 0, 0]): target for image, target in zip(images, targets, strict=True)}
    assert found.keys() == set(range(11))
    for row in empty:
        shapes = {key: tuple(found[row][key].shape) for key in ("boxes", "labels", "area")}
        assert shapes == {"boxes": (0, 4), "labels": (0,), "area": (0,)}
        assert found[row]["boxes"].dtype == torch.float32
    assert not any(target["iscrowd"].any() for target in found.values())


def test_a_data_set_without_objects_is_an_error():
    table = pack(
        "crowded",
        ["cat"],
        image_ids=[1, 2],
        sizes=[(9, 9)] * 2,
        rows=[0],
        boxes=[[1, 1, 5, 5]],
        labels=[1],
        iscrowd=[True],
    )
    for drop_empty in (True, False):
        with pytest.raises(DataError, match=r"crowded: no object to train on \(got 2 images, 1"):
            train_batches(DetectionDataset(table, Images(table)), seed=1, batch=2, steps=2, drop_empty=drop_empty)


def test_the_batch_must_divide(table):
    with pytest.raises(ConfigError, match=r"train\.batch.*got batch 6, 2 processes, accumulate 2"):
        train_batches(DetectionDataset(table, Images(table)), seed=1, batch=6, steps=2, world=2, accumulate=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_image_once(table, workers, world):
    rows = []
    for rank in range(world):
        for (row,), (image,) in eval_batches(
            DetectionDataset(table, Images(table)), rank=rank, world=world, workers=workers
        ):
            assert image.shape == (3, *table.sizes[row])
            assert image[0, 0, 0] == row
            rows.append(row)
    assert sorted(rows) == list(range(11))


class Broken(Images):
    def __call__(self, row: int) -> Tensor:
        if row == 5:
            raise DataError("images/5.jpg: truncated; fix it")
        return super().__call__(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_the_same_one_line_from_a_worker(table, workers):
    with pytest.raises(DataError) as error:
        list(eval_batches(DetectionDataset(table, Broken(table)), workers=workers))
    assert str(error.value) == "images/5.jpg: truncated; fix it"
    with pytest.raises(DataError) as error:
        list(train_batches(DetectionDataset(table, Broken(table)), seed=1, batch=4, steps=4, workers=workers))
    assert str(error.value) == "images/5.jpg: truncated; fix it"


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(table, workers):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    batches(table, workers=workers)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_signals_are_left_to_the_main_process(table):
    loader = train_batches(DetectionDataset(table, Images(table)), seed=1, batch=4, steps=60, workers=2)
    next(loader), next(loader)  # one of each worker, which is ready for signals then
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for name in ("INT", "HUP", "USR1", "TERM"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert len(list(loader)) == 58
    for worker in workers:
        worker.join(HANG)
        assert worker.exitcode == 0


def test_a_worker_ends_with_its_main_process(table):
    loader = train_batches(DetectionDataset(table, Images(table)), seed=1, batch=4, steps=60, workers=1)
    next(loader)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(HANG)
    assert worker.exitcode == 0
