"""Prediction: the detections of an evaluation, from every kind of image; the tool on files, folders and patterns."""

from __future__ import annotations

import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import grcn
from grcn.build import build_test_split, build_training
from grcn.config.files import load_config
from grcn.data.images import to_rgb_tensor
from grcn.engine import checkpoint
from grcn.errors import CheckpointError, EnvironmentFault
from grcn.run.predict import Predictor

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/shapes/grcn_tiny.yaml"
SMALL = [
    "model.width=8", "model.head.dim=16", "model.roi.score_thresh=0.01", "data.train_images=8", "data.test_images=4",
    "train.batch=2", "train.warmup=0", "train.steps=20", "eval.pictures=0", "eval.protocols=[coco]", "run.workers=0",
    "run.threads=1", "run.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, the folder of its evaluation, and its test images as files."""
    folder = tmp_path_factory.mktemp("trained")
    done = programs.call("tools/train.py", "--config", CONFIG, "--output-dir", folder / "run", *SMALL, folder=folder)
    assert done.code == 0, done.stderr
    (folder / "images").mkdir()
    split = build_test_split(load_config(CONFIG, SMALL).data, None)
    for row in range(4):
        Image.fromarray(split.read_image(row).permute(1, 2, 0).numpy()).save(folder / f"images/{row}.png")
    (checkpoint,) = (folder / "run/checkpoints").glob("step_00000020-*.pt")
    return checkpoint, folder / "run/eval/step_20", folder / "images"


def test_the_detections_are_those_of_the_evaluation(trained):
    checkpoint, evaluation, images = trained
    predictor = grcn.load(checkpoint, "cpu")
    assert repr(predictor) == "Predictor(8 classes, step 20, cpu)"
    evaluated = json.loads((evaluation / "detections.json").read_text())
    assert len(evaluated) > 20
    for row in range(4):
        found = predictor.predict(images / f"{row}.png")
        own = [one for one in evaluated if one["image_id"] == row]
        assert found.labels.tolist() == [one["category_id"] for one in own]
        assert_close(found.scores, torch.tensor([one["score"] for one in own]), atol=1e-5, rtol=0)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in own)]
        assert_close(found.boxes, torch.tensor(corners), atol=1e-2, rtol=0)
        assert found.names == [predictor.classes[label - 1] for label in found.labels]
        half = found.scores.median().item()
        assert len(predictor.predict(images / f"{row}.png", half).boxes) == (found.scores >= half).sum()


def test_every_kind_of_image_gives_the_same(trained):
    checkpoint, _, images = trained
    predictor = grcn.load(checkpoint, "cpu")
    path = images / "1.png"
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB"))
        backwards = array[:, :, ::-1].copy()[:, :, ::-1]
        data = path.read_bytes()
        kinds = [str(path), path, picture, array, to_rgb_tensor(path), to_rgb_tensor(path).float() / 255]
        kinds += [backwards, data, io.BytesIO(data), path.open("rb")]
        found = predictor.predict_all(kinds)
    for other in found[1:]:
        assert_close((other.boxes, other.scores), (found[0].boxes, found[0].scores))


def test_a_threshold_below_the_models_own_is_respected(trained):
    checkpoint, _, images = trained
    predictor = grcn.load(checkpoint, "cpu")
    heads = predictor.model.roi_heads
    scores = predictor.predict(images / "0.png").scores
    heads.detecting = replace(heads.detecting, score_thresh=scores[9].item())
    usual, lower = (predictor.predict(images / "0.png", least) for least in (None, scores[29].item()))
    assert len(usual.scores) == 9 and len(lower.scores) in (29, 30)  # scores at the threshold may round either way
    assert_close(lower.boxes[:9], usual.boxes)
    assert heads.detecting.score_thresh == scores[9].item()


def test_threads_share_a_predictor_with_thresholds_of_their_own(trained):
    checkpoint, _, images = trained
    predictor = grcn.load(checkpoint, "cpu")
    heads = predictor.model.roi_heads
    scores = predictor.predict(images / "0.png").scores
    heads.detecting = settings = replace(heads.detecting, score_thresh=scores[9].item())
    pictures = [to_rgb_tensor(images / f"{row}.png") for row in range(4)]
    # At or below the model's own, so that each changes what the model computes.
    thresholds = (None, scores[29].item()), (scores[19].item(), scores[39].item())

    def predict(least):
        return [predictor.predict(picture, threshold) for picture in pictures for threshold in least]

    expected = [predict(least) for least in thresholds]
    counts = [[len(found.scores) for found in some] for some in expected]
    assert len({*counts[0][:2], *counts[1][:2]}) == 4
    together = threading.Barrier(2)

    def repeat(least):
        together.wait()
        return [predict(least) for _ in range(25)]

    with ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(repeat, thresholds), expected, strict=True):
            for some in found:
                for one, other in zip(some, alone, strict=True):
                    assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
                    assert torch.equal(one.labels, other.labels)
    assert heads.detecting is settings


def test_several_images_are_not_one(trained):
    with pytest.raises(TypeError, match=r"one image \(got list\); predict_all takes several"):
        grcn.load(trained[0], "cpu").predict([trained[2] / "0.png"] * 2)


def test_several_images_are_a_list(trained):
    predictor, path = grcn.load(trained[0], "cpu"), trained[2] / "0.png"
    for one in (str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), Image.open(path), None):
        with pytest.raises(TypeError, match="predict_all takes a list of images .*; predict takes one"):
            predictor.predict_all(one)
    array = np.asarray(Image.open(path))
    several = predictor.predict_all(np.stack([array, array]))
    assert len(several) == 2 and len(predictor.predict_all(image for image in [path])) == 1
    assert_close(several[1].boxes, predictor.predict(path).boxes)
    with pytest.raises(TypeError, match="got None"):
        predictor.predict(None)
    with pytest.raises(TypeError, match="got None"):
        predictor.predict_all([array, None])


def test_dark_images_of_sixteen_bits_are_warned_of_once_and_read_by_the_bits_of_the_training(trained, caplog):
    model, classes = grcn.load(trained[0], "cpu").model, ["a"] * 8
    dark = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    plain = Predictor(model, classes, torch.device("cpu"))
    for _ in range(2):
        plain.predict_all([dark, dark])
    assert caplog.text.count("uses 12 of its 16 bits") == 1 and "data.bits=12" in caplog.text
    caplog.clear()
    own = Predictor(model, classes, torch.device("cpu"), bits=12)
    assert own.read(dark).max() == 255 and plain.read(dark).max() == 15
    plain.predict(dark * 16)
    assert not caplog.text


def test_a_detector_reads_images_by_the_bits_of_its_own_training(tmp_path, monkeypatch):
    Image.fromarray(np.full((48, 64), 4095, np.uint16)).save(tmp_path / "0.png")
    record = {"id": 1, "file_name": "0.png", "width": 64, "height": 48}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 30, 30]}
    document = {"images": [record], "annotations": [box], "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    base = f"base: {ROOT}/configs/_base/tiny.yaml\n"
    (tmp_path / "c.yaml").write_text(base + "data: {format: coco, root: ., train: ['.:a.json'], test: ['.:a.json']}\n")
    small = ["model.width=4", "model.head.dim=8", "run.device=cpu", "train.steps=1", "train.warmup=0"]
    cfg = load_config(tmp_path / "c.yaml", [*small, "data.bits=12"])
    training = build_training(cfg)
    assert training.train.read_image(0).min() == training.test.read_image(0).min() == 255
    state = {"format": checkpoint.FORMAT, "step": 1, "losses": [], "optimizer": {}}
    state |= {"model": training.model.state_dict()} | training.record
    path = checkpoint.save(tmp_path, state, keep=1)
    assert grcn.load(path, "cpu").read(tmp_path / "0.png").min() == 255


def test_what_is_no_checkpoint_and_no_device_is_reported(trained, tmp_path):
    with pytest.raises(CheckpointError, match="nothing.pt"):
        grcn.load(tmp_path / "nothing.pt")
    with pytest.raises(EnvironmentFault, match="no such device"):
        grcn.load(trained[0], "gpu")


def test_files_folders_and_patterns_become_pictures_and_json(trained, tmp_path):
    checkpoint, _, images = trained
    shutil.copytree(images, tmp_path / "some/deep")
    (tmp_path / "some/deep/2.png").rename(tmp_path / "some/deep/2.PNG")
    (tmp_path / "some/notes.txt").write_text("no image")
    (tmp_path / "some/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    what = ["--checkpoint", checkpoint, "--device", "cpu", "--score-threshold", 0.02, "--batch", 2]
    named = [images / "0.png", "some/*/1*", images / "0.png", "some/deep/1.png"]
    good = programs.call("tools/predict.py", *what, *named, folder=tmp_path)
    assert good.code == 0, good.stderr
    document = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert [one["picture"] for one in document["images"]] == ["0.jpg", "1.jpg"]
    assert document["classes"] == ["sun", "moon", "lark", "owl", "boat", "cart", "beetle", "crate"]
    for one in document["images"]:
        with Image.open(tmp_path / "predictions" / one["picture"]) as picture:
            assert picture.size == (320, 320)  # small images are enlarged
        assert one["detections"] and all(found["score"] >= 0.02 for found in one["detections"])
    assert good.stdout.splitlines()[0].startswith(f"{images / '0.png'}: ")

    named = ["some", images, "some/deep/3.png"]  # the last one has another name in the output folder
    whole = programs.call("tools/predict.py", *what, *named, "--output-dir", "all", folder=tmp_path)
    assert whole.code == 3 and "1 of 9 images left out" in whole.stderr and whole.stderr.count("broken.jpg") == 1
    pictures = {str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*.jpg")}
    assert pictures == {*(f"{row}.jpg" for row in range(4)), *(f"deep/{row}.jpg" for row in range(4))}
    assert grcn.load(checkpoint, "cpu").predict_all([]) == []
    names = ["a-2.jpg", "a.jpg", "a.png"]
    (tmp_path / "alike").mkdir()
    for name in names:
        shutil.copy(images / "0.png", tmp_path / "alike" / name)  # the content decides the format
    before = (tmp_path / "alike/a.jpg").read_bytes()
    over = programs.call("tools/predict.py", *what, "alike", "--output-dir", "alike", folder=tmp_path)
    programs.assert_contract(over, 2, "a-2.jpg: would be written over")
    assert (tmp_path / "alike/a.jpg").read_bytes() == before
    apart = programs.call("tools/predict.py", *what, "alike", "--output-dir", "apart", folder=tmp_path)
    assert apart.code == 0 and len(list((tmp_path / "apart").glob("*.jpg"))) == 3
    again = programs.call(
        "tools/predict.py", *what, "some/deep/0.png", images / "0.png", "--output-dir", "two", folder=tmp_path
    )
    assert again.code == 0 and {path.name for path in (tmp_path / "two").glob("*.jpg")} == {"0.jpg", "0-2.jpg"}


def test_a_folder_is_searched_the_same_way_again(trained, tmp_path):
    checkpoint, _, images = trained
    (tmp_path / "deep").mkdir()
    for name in ("a.jfif", "b.jpe", "c.PNG", "deep/d.WebP", "deep/e.TIF"):
        shutil.copy(images / "0.png", tmp_path / name)  # the content decides the format
    for name in ("f.heic", "deep/g.HEIC", "h.avif", "._a.jpg", "deep/._d.webp", "notes.txt", "._i.heic"):
        (tmp_path / name).write_bytes(b"no image that is read")
    expected = ["a.jfif", "b.jpe", "c.PNG", "deep/d.WebP", "deep/e.TIF"]
    what = ["--checkpoint", checkpoint, "--device", "cpu"]
    for run in range(2):
        done = programs.call("tools/predict.py", *what, ".", folder=tmp_path)
        assert done.code == 0, done.stderr
        document = json.loads((tmp_path / "predictions/predictions.json").read_text())
        assert [one["file"] for one in document["images"]] == expected
        (line,) = (line for line in done.stderr.splitlines() if "left out" in line)
        assert line == "grcn: .: left out 2 .heic, 1 .avif, which cannot be read; save them as JPEG or PNG"
        assert ("predictions: its images are not searched (5)" in done.stderr) == bool(run)
    assert len(list((tmp_path / "predictions").rglob("*.jpg"))) == 5
    pattern = programs.call("tools/predict.py", *what, "**/*.[jP]*", "--no-pictures", folder=tmp_path)
    assert pattern.code == 0 and "predictions.json: 3 of 3 images read" in pattern.stderr, pattern.stderr
    # Who names the output folder wants its images.
    own = programs.call("tools/predict.py", *what, "predictions/deep", "--no-pictures", folder=tmp_path)
    assert own.code == 0 and "predictions.json: 2 of 2 images read" in own.stderr
    (tmp_path / "only").mkdir()
    (tmp_path / "f.heic").rename(tmp_path / "only/f.heic")
    none = programs.call("tools/predict.py", *what, "only", folder=tmp_path)
    programs.assert_contract(none, 3, "only: no images in it (got 1 .heic); name a folder with")


def test_what_reads_no_image_leaves_earlier_predictions(trained, tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/predictions.json").write_text("earlier")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    what = ["--checkpoint", trained[0], "--device", "cpu"]
    missing = programs.call("tools/predict.py", *what, trained[2] / "0.png", "nosuch.jpg", folder=tmp_path)
    programs.assert_contract(missing, 3, "nosuch.jpg: no such file or folder; check the path")
    broken = programs.call("tools/predict.py", *what, "broken.jpg", folder=tmp_path)
    assert broken.code == 3 and "1 of 1 images left out; fix" in broken.stderr
    assert (tmp_path / "predictions/predictions.json").read_text() == "earlier"


def test_nothing_above_the_threshold_reports_the_best_score(trained, tmp_path):
    checkpoint, _, images = trained
    best = grcn.load(checkpoint, "cpu").predict(images / "0.png")
    what = ["--checkpoint", checkpoint, "--device", "cpu", "--score-threshold", 0.99, "--no-pictures"]
    done = programs.call("tools/predict.py", *what, images / "0.png", folder=tmp_path)
    text = f"nothing from 0.99 (best: {best.names[0]} {best.scores[0]:.2g})"
    assert done.code == 0 and done.stdout == f"{images / '0.png'}: {text}\n"
    assert json.loads((tmp_path / "predictions/predictions.json").read_text())["images"][0]["detections"] == []
    assert "predictions.json: 1 of 1 images read, 0 boxes" in done.stderr
    lowest = programs.call("tools/predict.py", *what[:4], "--score-threshold", 0.001, images / "0.png", folder=tmp_path)
    (image,) = json.loads((tmp_path / "predictions/predictions.json").read_text())["images"]
    assert lowest.code == 0 and 0.001 <= image["detections"][-1]["score"] < 0.01  # which is the model's own threshold


@pytest.mark.parametrize(
    "args,code,named",
    [
        (["nowhere.jpg"], 3, "no such file or folder"),
        (["*.none"], 3, "nothing matches"),
        (["."], 3, "no images in it"),
        (["x.jpg", "--batch", 0], 2, "--batch: at least 1"),
        (["x.jpg", "--score-threshold", "nan"], 2, "--score-threshold: a number"),
        ([__file__, "--checkpoint", "nothing.pt"], 4, "nothing.pt"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(trained, args, code, named, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    result = programs.call("tools/predict.py", "--checkpoint", trained[0], *args, folder=empty)
    assert result.code == code and named in result.stderr and "Traceback" not in result.stderr
