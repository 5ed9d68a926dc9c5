"""Augmentation: right boxes, the promised size, and the same samples however a training is divided."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from grcn import rng
from grcn.data.augment import ColorJitter, HorizontalFlip, RandomCrop, keep_objects
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import train_batches
from grcn.errors import DataError
from grcn.models.transform import DetectionTransform

ALL = (HorizontalFlip(0.5), RandomCrop(0.8, (0.3, 1.0), 0.4), ColorJitter(0.4, 0.4, 0.4, 0.1))
DATA = DetectionDataset.shapes("flat", "train", 12, size=64)


def target(boxes: list[list[float]], **more: Any) -> dict[str, Any]:
    count = len(boxes)
    found = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    area = (found[:, 2:] - found[:, :2]).prod(1).float()
    return {
        "boxes": found, "labels": torch.arange(1, count + 1), "area": area, "iscrowd": torch.zeros(count).long(),
        "difficult": torch.zeros(count).bool(), "image_id": torch.tensor(3), "augmented": (), **more,
    }  # fmt: skip


@pytest.mark.parametrize("key", range(40))
def test_a_crop_is_torchvisions_and_keeps_what_is_left_enough(key: int) -> None:
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    given = target([[5, 6, 30, 40], [40, 10, 69, 49], [0, 0, 70, 50], [60.5, 3.25, 66, 20]])
    crop = RandomCrop(1.0, (0.2, 1.0), 0.5)
    cropped, found = crop(image, given, key)
    height, width = cropped.shape[1:]
    assert (height, width) == crop.size((50, 70), key)
    # The position of the crop is not returned; the pixels show it.
    places = [
        (top, left)
        for top in range(51 - height)
        for left in range(71 - width)
        if torch.equal(image[:, top : top + height, left : left + width], cropped)
    ]
    (top, left), *others = places
    assert not others
    boxes = BoundingBoxes(given["boxes"], format="XYXY", canvas_size=(50, 70))
    expected = F.clamp_bounding_boxes(F.crop(boxes, top, left, height, width)).as_subclass(torch.Tensor)
    share = (expected[:, 2:] - expected[:, :2]).clamp(min=0).prod(1) / given["area"]
    kept = share >= 0.5
    assert torch.allclose(found["boxes"], expected[kept]) and found["labels"].tolist() == given["labels"][kept].tolist()
    assert torch.allclose(found["area"].double(), (given["area"] * share)[kept])
    assert all(len(found[name]) == int(kept.sum()) for name in ("iscrowd", "difficult"))
    assert int(found["image_id"]) == 3


@pytest.mark.parametrize("augment", [HorizontalFlip(1.0), RandomCrop(1.0), ColorJitter(0.4)])
def test_targets_need_not_say_what_was_done_to_them(augment: Any) -> None:
    given = target([[5, 6, 30, 40]])
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    done = augment(image, given, 5)[1]["augmented"]
    del given["augmented"]
    assert augment(image, given, 5)[1].get("augmented", ()) == done


def test_a_crop_may_leave_one_pixel_and_no_objects() -> None:
    crop = RandomCrop(1.0, (0.0, 0.0), 0.5)
    image, found = crop(torch.zeros(3, 40, 50, dtype=torch.uint8), target([[1, 1, 30, 30]]), 5)
    assert image.shape == (3, 1, 1) and found["boxes"].shape == (0, 4) and found["boxes"].dtype == torch.float64
    image, found = crop(torch.zeros(3, 1, 1, dtype=torch.uint8), target([]), 5)
    assert image.shape == (3, 1, 1) and len(found["labels"]) == 0


def test_colours_are_torchvisions() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    given = target([[1, 2, 8, 9]])
    key = 11
    drawn, found = ColorJitter(0.3, 0.2, 0.5, 0.1)(image, given, key)
    factors = [1 + s * (2 * rng.uniform(key, i) - 1) for i, s in enumerate((0.3, 0.2, 0.5))]
    expected = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, factors[0]), factors[1]), factors[2])
    assert torch.equal(drawn, F.adjust_hue(expected, 0.1 * (2 * rng.uniform(key, 3) - 1)))
    assert found is given and torch.equal(ColorJitter()(image, given, key)[0], image)


@pytest.mark.parametrize("setting", [{"brightness": 1.5}, {"contrast": -0.1}, {"saturation": 2}, {"hue": 0.6}])
def test_colours_out_of_range_are_refused_before_training(setting) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be 0 to .* .got {setting[name]}"):
        ColorJitter(**setting)


def test_every_per_object_tensor_is_filtered_alike() -> None:
    masks = torch.arange(3 * 4).reshape(3, 2, 2)
    given = target([[0, 0, 9, 9], [1, 1, 8, 8], [2, 2, 7, 7]], masks=masks, note="as it was")
    found = keep_objects(given, torch.tensor([True, False, True]))
    assert found["labels"].tolist() == [1, 3] and torch.equal(found["masks"], masks[[0, 2]])
    assert found["note"] == "as it was" and int(found["image_id"]) == 3 and len(given["labels"]) == 3


def samples(
    world: int = 1, accumulate: int = 1, workers: int = 0, start_step: int = 0, steps: int = 6
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Returns the network's input for each sample of a training run, with all augmentations and several scales."""
    transform = DetectionTransform([48, 64, 80], 96).train()
    found = {}
    for rank in range(world):
        batches = train_batches(
            DATA, seed=3, batch=4, steps=steps, start_step=start_step, accumulate=accumulate, rank=rank, world=world,
            workers=workers, augment=ALL,
        )  # fmt: skip
        for images, targets in batches:
            batch, seen = transform(images, targets)
            assert seen is not None
            for tensor, one in zip(batch.tensors, seen, strict=True):
                found[one["rng_key"]] = tensor, one["boxes"]
    return found


@pytest.mark.parametrize(
    "divided", [{"workers": 2}, {"world": 2}, {"world": 4}, {"accumulate": 2}, {"world": 2, "accumulate": 2}]
)
def test_samples_do_not_depend_on_how_a_training_is_divided(divided: dict[str, int]) -> None:
    expected, found = samples(), samples(**divided)
    assert found.keys() == expected.keys() and len(found) == 24
    for key, (tensor, boxes) in expected.items():
        assert torch.equal(found[key][0], tensor) and torch.equal(found[key][1], boxes)
    assert len({tuple(tensor.shape) for tensor, _ in expected.values()}) > 2


@pytest.mark.parametrize("step", range(1, 6))
def test_a_resumed_training_continues_with_the_same_samples(step: int) -> None:
    expected = samples()
    rest = samples(start_step=step)
    assert len(rest) == 4 * (6 - step)
    assert all(torch.equal(tensor, expected[key][0]) for key, (tensor, _) in rest.items())


class Broken:
    """Promises one size and returns another."""

    def size(self, size: tuple[int, int], key: int) -> tuple[int, int]:
        return size

    def __call__(self, image: torch.Tensor, target: dict[str, Any], key: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return image[:, :-1], target


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_promise_of_a_size_is_one_error(workers: int) -> None:
    batches = train_batches(DATA, seed=0, batch=2, steps=1, workers=workers, augment=[Broken()])
    with pytest.raises(DataError, match=r"augmentation Broken: .* \[63, 64\] where its size\(\) says \[64, 64\]"):
        next(iter(batches))


def test_the_short_side_is_drawn_in_training_and_the_largest_in_evaluation() -> None:
    transform = DetectionTransform([48, 64], 200)
    drawn = {transform.resized((100, 100), key) for key in range(50)}
    assert drawn == {(48, 48), (64, 64)} and transform.resized((100, 100)) == (64, 64)
    image = torch.zeros(3, 100, 100)
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    prepare = partial(transform, [image])
    assert transform.eval()([image])[0].image_sizes == [(64, 64)]
    sizes = set()
    for seed in range(20):  # without a key, as with a loader of one's own
        torch.manual_seed(seed)
        batch, seen = transform.train()([image], [{"boxes": boxes}])
        sizes.add(batch.image_sizes[0])
        assert torch.allclose(seen[0]["boxes"], boxes * batch.image_sizes[0][0] / 100)
    assert sizes == {(48, 48), (64, 64)}
    assert prepare([{"boxes": boxes, "rng_key": 7}])[0].image_sizes == [transform.resized((100, 100), 7)]
