"""The sheet shows the input of training: its images, and the very anchors and RoIs that its losses read."""

from __future__ import annotations

import re
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import Outcome, assert_contract, call
from support import small_batch, small_detector
from torch.testing import assert_close
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from grcn import rng
from grcn.apps.browse import browse
from grcn.apps.browse.sheet import COLORS, draw_sheet, object_colors
from grcn.config.files import load_config
from grcn.models.roi_heads import RoIHeads
from grcn.models.rpn import RegionProposalNetwork
from grcn.models.transform import DetectionTransform, Normalisation
from grcn.run import train as run
from grcn.vis import inputs
from grcn.vis.samples import Anchors, RoIs, Sample, samples_of

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.width=8", "model.head.dim=16", "data.train_images=8", "data.test_images=2", "train.batch=4",
    "train.warmup=0", "train.steps=2", "train.checkpoint_every=1", "eval.protocols=[coco]", "eval.pictures=0",
    "run.workers=0", "run.threads=1", "run.device=cpu",
]  # fmt: skip


def shown(monkeypatch, cfg, folder, **options) -> list[Sample]:
    """Browses, and returns what is drawn instead of drawing it."""
    drawn = []

    def sheet(samples, *args):
        drawn.extend(samples)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(browse, "draw_sheet", sheet)
    browse.browse(cfg, folder / "sheet.png", **{"images": 8, "panels": ["inputs", "anchors", "rois"], **options})
    return drawn


@pytest.mark.parametrize(
    "name, settings",
    [
        ("grcn_tiny", ["train.accumulate=2", "model.rpn.straddling=true"]),
        ("faster_rcnn_tiny_resnet", ["model.roi.bg_iou_low=0.1", "model.rpn.fg_iou=0.5"]),
    ],
)
def test_what_is_shown_is_what_training_samples(name, settings, tmp_path, monkeypatch):
    """A real run writes down what its losses read, of its first step and of the one after a checkpoint."""
    cfg = load_config(ROOT / f"configs/shapes/{name}.yaml", [*SMALL, *settings])
    read = {RegionProposalNetwork: [], RoIHeads: []}
    for owner, calls in read.items():

        def sample(self, *args, real=owner.sample, calls=calls):
            calls.append((args, real(self, *args)))
            return calls[-1][1]

        monkeypatch.setattr(owner, "sample", sample)
    run.train(cfg, tmp_path / "run")
    firsts, seconds = ([*calls] for calls in read.values())
    assert len(firsts) == len(seconds) == 2 * cfg.train.accumulate
    monkeypatch.undo()

    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step_00000001-*.pt")
    samples = shown(monkeypatch, cfg, tmp_path, images=4)
    samples += shown(monkeypatch, cfg, tmp_path, images=4, weights=checkpoint)
    images = 0
    for ((anchors, _, objects, states), first), (_, second) in zip(firsts, seconds, strict=True):
        for i, valid in enumerate(objects.valid):
            target = {"boxes": objects.boxes[i][valid], "labels": objects.labels[i][valid]}
            sample, fg, roi_fg = samples[images], first.foreground[i], second.foreground[i]
            assert_close(sample.target["boxes"], target["boxes"], rtol=0, atol=0)
            assert rng.image_states([sample.target], states.device, (rng.ANCHORS,))[0, 0] == states[i]
            assert torch.equal(sample.anchors.boxes, anchors[first.indices[i][fg]]) and fg.any()
            assert torch.equal(sample.anchors.matched_gt, first.matched_gt[i][fg])
            assert sample.anchors.num_bg == (first.valid[i] & ~fg).sum() > 0
            assert torch.equal(sample.rois.boxes, second.rois[i][roi_fg]) and roi_fg.any()
            assert torch.equal(sample.rois.labels, second.labels[i][roi_fg])
            assert torch.equal(sample.rois.labels, target["labels"][sample.rois.matched_gt])
            assert torch.equal(sample.rois.background, second.rois[i][second.valid[i] & ~roi_fg])
            own = box_iou(target["boxes"], sample.rois.boxes).gather(0, sample.rois.matched_gt[None])[0]
            assert_close(sample.rois.iou, own)
            assert torch.equal(sample.rois.truth, (sample.rois.iou > 1 - 1e-6))
            images += 1
    assert images == 8 == len(samples)


def test_anchors_are_matched_as_torchvision_matches_them():
    """With room for all anchors, the sampled ones are the matched ones."""
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    rescued = missed = 0
    for seed in range(4):
        model = small_detector(rpn_batch=1000).train()
        images, targets = small_batch(seed=seed)
        # Where two objects coincide, the first has the anchors.
        targets[0]["boxes"] = torch.cat([targets[0]["boxes"] + seed, targets[0]["boxes"][:1] + seed]).clamp(max=64)
        targets[0]["labels"] = torch.tensor([1, 3, 4, 1])
        for sample in samples_of(model, images, targets):
            found, boxes = sample.anchors, sample.target["boxes"]
            grid = model.rpn.anchors((torch.zeros(1, 1, *(side // 16 for side in sample.canvas)),), sample.canvas)
            overlaps = box_iou(boxes, grid)
            theirs = matcher(overlaps)
            expected = sorted((*grid[i].tolist(), int(theirs[i])) for i in (theirs >= 0).nonzero()[:, 0])
            ours = sorted((*box, gt) for box, gt in zip(found.boxes.tolist(), found.matched_gt.tolist(), strict=True))
            assert ours == expected
            assert found.num_bg == (theirs == Matcher.BELOW_LOW_THRESHOLD).sum()
            for index in range(len(boxes)):
                own = overlaps[index][theirs == index]
                assert found.matched[index] == len(own)
                assert bool(found.missed[index]) == (len(own) == 0)
                assert bool(found.rescued[index]) == (len(own) > 0 and own.max().item() < 0.7)
                if len(own):
                    assert_close(found.best_iou[index], own.max())
                    best = grid[(theirs == index).nonzero()[own.argmax(), 0]]
                    size = ((best[2:] - best[:2]).prod()) ** 0.5
                    assert_close(torch.tensor(float(model.rpn.anchors.sizes[0][found.best_size[index]])), size)
                else:
                    assert found.best_iou[index] == 0 and found.best_size[index] == -1
            rescued, missed = rescued + int(found.rescued.sum()), missed + int(found.missed.sum())
    assert rescued and missed


def test_evaluation_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        samples_of(small_detector().eval(), *small_batch())


@pytest.mark.parametrize("bgr", [False, True])
def test_pictures_are_what_was_resized(bgr):
    transform = DetectionTransform(48, 80, Normalisation((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), bgr))
    images = [torch.rand(3, 24, 36), torch.rand(3, 50, 20)]
    batch, _ = transform(images)
    for picture, image in zip(transform.pictures(batch), images, strict=True):
        size = transform.resized(tuple(image.shape[1:]))
        expected = torch.nn.functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        assert_close(picture, expected, rtol=1e-5, atol=1e-6)


def made(objects: list[list[float]], anchors: Anchors | None = None, rois: RoIs | None = None) -> Sample:
    boxes = torch.tensor(objects).reshape(-1, 4)
    target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}
    return Sample(torch.full((3, 100, 160), 0.2), (50, 80), (100, 200), target, anchors, rois)


def extent(picture: np.ndarray, color: str) -> tuple[int, int, int, int]:
    """Returns the smallest box around the pixels of a colour, xyxy with the far edge exclusive."""
    ys, xs = np.nonzero((picture == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_boxes_lie_on_their_pixels_in_the_colour_of_their_object():
    """An image of 160 x 100 is drawn four times as large, below the lines of text."""
    objects = [[10.0, 10.0, 40.0, 40.0], [100.0, 50.0, 140.0, 90.0]]
    anchors = Anchors(
        torch.tensor([[95.0, 40.0, 150.0, 95.0]]), torch.tensor([1]), 7, torch.tensor([0, 1]), torch.tensor([0, 0.5]),
        torch.tensor([-1, 0]), 0.7,
    )  # fmt: skip
    rois = RoIs(
        torch.tensor([[5.0, 4.0, 45.0, 50.0]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([0.6]),
        torch.tensor([[60.0, 20.0, 80.0, 95.0]]), torch.tensor([False]), {},
    )  # fmt: skip
    sample = made(objects, anchors, rois)
    pictures = {}
    for panel in ("inputs", "anchors", "rois"):
        sheet = np.asarray(draw_sheet([sample], ["a"], ("cat",), [panel]))
        pictures[panel] = sheet[-406:-6, 6 : 6 + 640]
    scaled = {name: tuple(4 * int(value) for value in box) for name, box in
              (("anchor", anchors.boxes[0]), ("roi", rois.boxes[0]), ("background", rois.background[0]))}  # fmt: skip
    assert extent(pictures["anchors"], COLORS[1]) == scaled["anchor"]
    assert extent(pictures["inputs"], COLORS[1])[2:] == (560, 360), "there is the object alone"
    assert extent(pictures["rois"], COLORS[0]) == scaled["roi"]
    assert extent(pictures["rois"], "#C0C0C0") == scaled["background"]


def test_no_two_neighbours_share_a_colour():
    middles = torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0)) * 20
    objects = torch.cat([middles, middles + 15], 1)[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    colors = object_colors(objects)
    assert len(set(colors)) == len(set(colors[: len(COLORS)])) == len(COLORS)
    alike = torch.tensor([[a == b for b in colors] for a in colors]).fill_diagonal_(False)
    assert torch.cdist(objects, objects)[alike].min() > 1.4 * 20, "beside each other"
    assert object_colors(torch.zeros(0, 4)) == []


def test_images_are_as_large_as_the_one_with_most_objects_needs():
    few, many = (made([[10.0, 10.0, 40.0, 40.0]] * count, None, None) for count in (1, 11))
    height = {
        name: draw_sheet(samples, ["a"] * len(samples), ("cat",), ["inputs"]).height
        for name, samples in (("few", [few]), ("many", [many]), ("both", [few, many]))
    }
    assert height["few"] < height["many"] == height["both"]


def test_figures_sum_up_what_is_drawn():
    anchors = Anchors(
        torch.zeros(3, 4), torch.tensor([0, 0, 1]), 5, torch.tensor([4, 1, 0]), torch.tensor([0.8, 0.6, 0.0]),
        torch.tensor([1, 0, -1]), 0.7,
    )  # fmt: skip
    rois = RoIs(
        torch.zeros(2, 4), torch.ones(2, dtype=torch.int64), torch.tensor([0, 1]), torch.tensor([1.0, 0.5]),
        torch.zeros(6, 4), torch.tensor([True, False]), {"loc": torch.tensor([0, 1, 1, 1, 0, 1, 1, 1])},
    )  # fmt: skip
    none = Anchors(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 9, torch.zeros(0, dtype=torch.int64), torch.zeros(0),
        torch.zeros(0, dtype=torch.int64), 0.7,
    )  # fmt: skip
    empty = RoIs(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0),
        torch.zeros(8, 4), torch.zeros(0, dtype=torch.bool), {"loc": torch.zeros(8, dtype=torch.int64)},
    )  # fmt: skip
    boxes = [[0.0, 0.0, 9.0, 9.0]] * 3
    strides = {"cls": (16,), "loc": (4, 8)}
    text = "\n".join(browse.figures([made(boxes, anchors, rois), made([], none, empty)], (16, 32.5), strides))
    assert "objects: 3, 1.5 per image (0 to 3)" in text
    assert "anchors, foreground: 1.5 per image (0 to 3)" in text and "background: 7.0 per image (5 to 9)" in text
    assert "from IoU 0.7: 1; by the low-quality rule only: 1; with none: 1" in text
    assert "size of their best anchor: 16: 1, 32.5: 1" in text
    assert "RoIs, foreground: 1.0 per image (0 to 2); mean IoU 0.75, 0.50 without 1 ground-truth box" in text
    assert "RoIs by the stride of their loc map: 4: 10, 8: 6" in text and "of their cls map" not in text
    assert "no foreground" in "\n".join(browse.figures([made([], none, empty)], (16,), {}))


XML = """<annotation><filename>{stem}.png</filename><size><width>{w}</width><height>{h}</height><depth>1</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>
</object>"""


@pytest.fixture
def config(tmp_path):
    """Grey images in VOC layout: one with an object, one without, one of a few pixels; and a config for them."""
    root = tmp_path / "kit" / "mine"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for stem, (w, h), count in (("one", (64, 48), 1), ("none", (50, 50), 0), ("tiny", (5, 3), 0)):
        pixels = np.random.default_rng(0).integers(0, 255, (h, w), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(XML.format(stem=stem, w=w, h=h, objects=OBJECT * count))
    for split in ("train", "test"):
        (root / f"ImageSets/Main/{split}.txt").write_text("one\nnone\ntiny\n")
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {backbone: tiny, width: 8, image: {short: 48, max: 64}, anchors: {sizes: [16, 32]}, head: {dim: 16}}\n"
        f"data: {{format: voc, root: '{root.parent}', train: [mine/train], test: [mine/test], drop_empty: false}}\n"
        "train: {steps: 2, batch: 2}\nrun: {workers: 0, device: cpu, threads: 1}\n"
    )
    return path


def test_grey_tiny_and_empty_images_as_a_user_browses_them(config, tmp_path):
    browsed = partial(call, "tools/browse.py", "--config", config, folder=tmp_path)
    done = browsed("--images", "40", "--output", "made/sheet.png")
    assert done.code == 0 and "Traceback" not in done.stderr, done.stderr
    assert "3 images to train on, all are drawn" in done.stderr
    assert "step 1 to 2: 3 images" in done.stdout and "of an untrained network" in done.stdout
    assert "objects: 1, 0.3 per image (0 to 1)" in done.stdout
    with Image.open(tmp_path / "made/sheet.png") as sheet:
        assert sheet.width > 3 * 400 and sheet.height > 3 * 300
        narrow = sheet.width
    done = browsed(
        "--output", "a.JPG", "--show", "anchors", "inputs", "data.drop_empty=true", "model.anchors.sizes=[99]"
    )
    assert done.code == 0, done.stderr
    assert "RoIs" not in done.stdout and "low-quality rule only: 0; with none: 1" in done.stdout
    with Image.open(tmp_path / "a.JPG") as sheet:
        assert sheet.format == "JPEG" and sheet.width < narrow


def test_mistakes_are_one_line(config, tmp_path, monkeypatch, capfd):
    run.train(load_config(config, ["eval.protocols=[coco]", "eval.pictures=0"]), tmp_path / "run")
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("*.pt")
    monkeypatch.chdir(tmp_path)

    def browsed(*args: object) -> Outcome:
        """In this process, which spares the start of others."""
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["browse.py", "--config", str(config), *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools/browse.py"), run_name="__main__")
        written = capfd.readouterr()
        return Outcome(" ".join(map(str, args)), int(ended.value.code or 0), written.out, written.err)

    cases: list[tuple[int, list[object], str]] = [
        (2, ["--output", "sheet.gif"], "sheet.gif"),
        (2, ["--images", "0"], "got 0"),
        (2, ["--show", "rpn"], "'rpn'"),
        (2, ["--step", "0"], "got 0"),
        (3, ["data.train=[mine/other]"], "other"),
        (4, ["--checkpoint", config], "small.yaml"),
        (2, ["--checkpoint", checkpoint, "model.width=4"], "model.width"),
        (4, ["--checkpoint", checkpoint, "model.width=4", "--allow-changes"], "another shape"),
        (4, ["--checkpoint", checkpoint, "data.classes=[cat]"], "has other classes"),
        (2, ["--checkpoint", checkpoint, "model.anchors.sizes=[16, 33]"], "model.anchors.sizes"),
        (5, ["--output", f"{config}/sheet.png"], "small.yaml"),
    ]
    for code, args, named in cases:
        assert_contract(browsed(*args), code, named)
        assert not list(tmp_path.glob("contact_sheet.*"))
    changed = ["model.anchors.sizes=[16, 33]", "--allow-changes", "--step", "1"]
    done = browsed("--checkpoint", checkpoint, *changed)
    assert done.code == 0 and re.search(rf"step 1 to 2: 3 images\n.*{checkpoint.name}, step 2", done.stdout), done


def test_a_run_draws_its_first_inputs_and_a_resumed_one_does_not(config, tmp_path, monkeypatch):
    drawn = []

    def sheet(images, targets, *args, real=inputs.contact_sheet, **options):
        drawn.append((images, targets))
        return real(images, targets, *args, **options)

    monkeypatch.setattr(inputs, "contact_sheet", sheet)
    settings = ["train.batch=2", "eval.protocols=[coco]", "eval.pictures=1", "eval.limit=1"]
    run.train(load_config(config, settings), tmp_path / "run")
    picture = tmp_path / "run/vis/inputs.png"
    with Image.open(picture) as opened:
        assert opened.width > 2 * 300
    ((images, targets),) = drawn
    samples = shown(monkeypatch, load_config(config, settings), tmp_path, images=2, panels=["inputs"])
    for image, target, sample in zip(images, targets, samples, strict=True):
        assert torch.equal(image, sample.image) and torch.equal(target["boxes"], sample.target["boxes"])
    picture.unlink()
    run.train(load_config(config, [*settings, "train.steps=3"]), tmp_path / "run", resume=True, allow_changes=True)
    assert not picture.exists()
    run.train(load_config(config, [*settings, "eval.pictures=0"]), tmp_path / "none")
    assert not (tmp_path / "none/vis").exists()


def test_variables_of_a_job_manager_change_nothing(config, tmp_path, monkeypatch):
    """Browsing is for one process, whatever rank its machine has been given."""
    cfg = load_config(config)
    alone = shown(monkeypatch, cfg, tmp_path, images=2, panels=["inputs"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    again = shown(monkeypatch, cfg, tmp_path, images=2, panels=["inputs"])
    assert all(torch.equal(one.image, two.image) for one, two in zip(alone, again, strict=True))
