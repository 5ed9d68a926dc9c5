"""Detections that are broken, foreign or odd: scored as documented, or refused in one line with exit code 3."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_data
import numpy as np
import programs
import pytest
from PIL import Image

from grcn.data.coco import load, read_detections
from grcn.errors import DataError
from grcn.evaluation import coco, voc
from grcn.evaluation.detections import Detections, check

BOXES = {1: [[4, 5, 30, 20], [40, 8, 16, 30]], 2: [[10, 12, 22, 22]], 3: [[0, 0, 20, 20], [30, 20, 20, 20]]}
CATEGORIES = {7: "cat", 3: "dog", 9: "bird"}  # no bird anywhere
HUGE = 10**25


def truth() -> dict[str, Any]:
    """The annotations: cats and dogs by turns."""
    annotations = []
    for image, boxes in BOXES.items():
        for number, box in enumerate(boxes):
            one = {"image_id": image, "category_id": (7, 3)[number % 2], "bbox": box, "area": box[2] * box[3]}
            annotations.append(one | {"id": len(annotations) + 1, "iscrowd": 0})
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in BOXES],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": annotations,
    }


def perfect() -> list[dict[str, Any]]:
    """The detections of a perfect detector."""
    keys = ("image_id", "category_id", "bbox")
    return [{key: one[key] for key in keys} | {"score": 0.9} for one in truth()["annotations"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set in COCO's layout, and a config for it."""
    for name in ("annotations", "val"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for image in BOXES:
        Image.new("RGB", (64, 48)).save(tmp_path / f"data/val/{image}.png")
    put_truth(tmp_path, truth())
    (tmp_path / "c.yaml").write_text(
        "model: {backbone: tiny}\ndata: {format: coco, root: data, train: [val], test: [val]}\n"
        "train: {steps: 1}\neval: {pictures: 0}\nrun: {device: cpu}\n"
    )
    return tmp_path


def put_truth(folder: Path, document: object) -> None:
    (folder / "data/annotations/instances_val.json").write_text(json.dumps(document))


def score(folder: Path, document: object = None, name: str = "d.json", **options: Any) -> programs.Outcome:
    """Runs the tool on detections, given as text or bytes or to be written as JSON."""
    if document is not None:
        text = document if isinstance(document, str | bytes) else json.dumps(document)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    args = ("--config", "c.yaml", "--detections", name, "--output-dir", "out")
    return programs.call("tools/eval.py", *args, folder=folder, **options)


def figures(result: programs.Outcome) -> dict[str, Any]:
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


def with_field(key: str, value: object) -> list[dict[str, Any]]:
    """Returns detections of which the third is changed."""
    found = perfect()
    found[2] = found[2] | {key: value}
    return found


def without(key: str) -> list[dict[str, Any]]:
    found = perfect()
    del found[2][key]
    return found


def bad_files() -> dict[str, tuple[object, tuple[str, ...]]]:
    """Returns what a file may hold, and what the message must name."""
    whole = json.dumps(perfect())
    wrong = {
        "image_id": [None, True, 1.5, [1], {}, HUGE, ""],
        "category_id": [None, False, 7.5, [7], "cat", HUGE],
        "bbox": [
            *(None, 3, "1,2,3,4", [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [None, 2, 3, 4], [True, 2, 3, 4]),
            *([[1, 2, 3, 4]], [1, 2, -3, 4], [1, 2, 3, -4], [1, 2, 3, HUGE], {"x": 1}, [1, 2, 3, math.nan]),
        ],
        "score": ["0.5", None, True, [0.5], {}, math.nan, math.inf, -math.inf, HUGE, ""],
    }
    cases: dict[str, tuple[object, tuple[str, ...]]] = {
        f"{key} is {value!r}": (
            with_field(key, value),
            ("d.json",) if isinstance(value, float) or "nan" in repr(value) else ("d.json#/2",),
        )
        for key, values in wrong.items()
        for value in values
    }
    cases |= {f"no {key}": (without(key), (f"d.json#/2/{key}",)) for key in wrong}
    cases |= {
        "a record is null": ([*perfect(), None], ("d.json#/5",)),
        "a record is a list": ([[1, 2]], ("d.json#/0",)),
        "an object": ({"annotations": perfect()}, ("not a list",)),
        "a number": ("3", ("not a list",)),
        "null": ("null", ("not a list",)),
        "nothing": ("", ("d.json:1:1",)),
        "cut off": (whole[:-9], ("d.json:1:",)),
        "a photo": (b"\xff\xd8\xff\xe0", ("UTF-8",)),
        "zeros": (bytes(64), ("d.json:1:1",)),
        "a web page": ("<html>", ("d.json:1:1",)),
        "1e999": (whole.replace("0.9", "1e999", 1), ("d.json#/0/score",)),
        "a key twice": (whole.replace('"score": 0.9', '"score": 0.9, "score": 0.1', 1), ("twice",)),
        "very deep": ("[" * 99999, ("d.json",)),
        "digits": (whole.replace("0.9", "9" * 9999, 1), ("d.json",)),
        "an escape": (with_field("image_id", "\x1b]0;\n"), (r"\x1b]0;\n",)),
        "two documents": (whole + whole, ("d.json:1:",)),
    }
    return cases


def failure(result: programs.Outcome, *named: str) -> str:
    """Returns what is wrong with how the tool ended on a bad file, or nothing."""
    try:
        programs.assert_contract(result, 3, *named)
    except AssertionError as error:
        return str(error)
    return ""


def test_bad_result_files_are_one_line(
    folder: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    cases = list(bad_files().items())[:: 1 if faults > 1 else 12]
    failures = {name: text for name, (document, named) in cases if (text := failure(score(folder, document), *named))}
    assert not failures, "\n\n".join(f"{name}: {text}" for name, text in failures.items())
    record_property("faults", f"bad results: {len(cases)} of {len(cases)} cases are one line with exit 3")


@pytest.mark.parametrize("name", ["none.json", "empty", "\x1b\n.json"])
def test_what_is_no_result_file(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    programs.assert_contract(score(folder, name=name), 3)


DEVKIT = {
    "a line of four": ("1 0.9 4 5 30\n", ":1"),
    "a line of six": ("1 0.9 4 5 30 20 1\n", ":1"),
    "a word": ("\n1 high 4 5 30 20\n", ":2"),
    "nan": ("1 nan 4 5 30 20\n", ":1"),
    "an infinite corner": ("1 0.9 4 5 inf 20\n", ":1"),
    "reversed": ("1 0.9 30 5 4 20\n", ":1"),
    "another image": ("000012 0.9 4 5 30 20\n", "'000012'"),
    "no text": (b"\xff\xfe\0\0", ":1"),
    "an escape": ("1\x1b[31m 0.9 4 5 30 20\n", r"\x1b"),
}


def test_bad_devkit_files_are_one_line(folder: Path) -> None:
    for name, (contents, place) in DEVKIT.items():
        text = contents if isinstance(contents, bytes) else contents.encode()
        (folder / "kit").mkdir(exist_ok=True)
        (folder / "kit/comp4_det_val_cat.txt").write_bytes(text)
        assert not failure(score(folder, name="kit"), "comp4_det_val_cat.txt", place), name
    (folder / "kit/comp4_det_val_cat.txt").write_text("")
    (folder / "kit/comp4_det_test_dog.txt").write_text("")
    assert not failure(score(folder, name="kit"), "several splits")
    (folder / "kit/comp4_det_test_dog.txt").rename(folder / "kit/comp4_det_val_cow.txt")
    assert not failure(score(folder, name="kit"), "comp4_det_val_cow.txt")


# ---------------------------------------------------------------- what is odd and has a score


def test_folders_that_share_names_of_images_are_trained_and_scored(tmp_path: Path) -> None:
    bad_data.write(tmp_path / "data", "voc")
    (tmp_path / "data/VOC2007").rename(tmp_path / "data/A")
    shutil.copytree(tmp_path / "data/A", tmp_path / "data/B")
    (tmp_path / "c.yaml").write_text(bad_data.CONFIG.format("voc", "A/train, B/train"))
    args = ("--config", "c.yaml", "model.roi.score_thresh=0.01", "--output-dir")
    trained = programs.call("tools/train.py", *args, "run", folder=tmp_path)
    metrics = figures(trained)
    written = json.loads((tmp_path / "run/eval/step_2/detections.json").read_text())
    assert {one["image_id"] for one in written} == {f"{folder}/{name}" for folder in "AB" for name in range(4)}
    (weights,) = (tmp_path / "run/checkpoints").glob("step_*2-*.pt")
    args = (*args, "out")
    assert figures(programs.call("tools/eval.py", *args, "--checkpoint", weights, folder=tmp_path)) == metrics
    for name in ("detections.json", "devkit"):
        read = programs.call("tools/eval.py", *args[:-1], name, "--detections", f"out/{name}", folder=tmp_path)
        assert figures(read) == pytest.approx(metrics, abs=1e-6)


def test_perfect_detections_and_none_at_all(folder: Path) -> None:
    found = figures(score(folder, perfect()))
    assert {value for name, value in found.items() if "_ap" in name and value is not None} == {1.0}
    per_class = json.loads((folder / "out/results.json").read_text())["per_class"]
    assert per_class["bird"]["coco_ap"] is None and per_class["bird"]["voc_area_ap50"] is None
    assert per_class["bird"]["objects"] == 0 and per_class["cat"]["coco_ap"] == 1.0
    result = score(folder, [])
    assert {value for name, value in figures(result).items() if value is not None} == {0.0}
    assert "AP is 0: there are no detections" in result.stderr


def test_a_class_without_detections_counts_as_zero(folder: Path) -> None:
    cats = [one for one in perfect() if one["category_id"] == 7]
    found = figures(score(folder, cats))
    assert found["coco_ap"] == found["voc_area_ap50"] == 0.5


def test_annotations_without_anything_to_find(folder: Path) -> None:
    document = truth()
    put_truth(folder, document | {"annotations": []})
    assert not failure(score(folder, []), "nothing to evaluate")
    put_truth(folder, document | {"annotations": [one | {"iscrowd": 1} for one in document["annotations"]]})
    result = score(folder, perfect())
    assert set(figures(result).values()) == {None} and "AP is undefined" in result.stderr


@pytest.mark.parametrize("name", ["nut/bolt", 99 * "犬"], ids=["slash", "long"])
def test_classes_that_no_file_can_be_called_are_scored(folder: Path, name: str) -> None:
    document = truth()
    document["categories"][0]["name"] = name
    put_truth(folder, document)
    result = score(folder, perfect())
    assert figures(result)["coco_ap"] == 1.0
    assert result.stderr.count("no devkit files") == 1 and "class cannot be in a file name" in result.stderr
    left = {path.name for path in (folder / "out").iterdir()}
    assert {"detections.json", "results.json", "per_class.csv"} <= left and "devkit" not in left
    assert figures(score(folder, name="out/detections.json"))["coco_ap"] == 1.0


def test_a_run_without_anything_to_find_is_refused_at_its_start(folder: Path) -> None:
    (folder / "data/train").symlink_to("val")
    (folder / "data/annotations/instances_train.json").write_text(json.dumps(truth()))
    args = ("--config", "c.yaml", "--output-dir", "run", "data.train=[train]")
    document = truth()
    put_truth(folder, document | {"annotations": [one | {"iscrowd": 1} for one in document["annotations"]]})
    crowds = programs.call("tools/train.py", *args, folder=folder)
    assert not failure(crowds, "val: nothing to evaluate", "0 objects to find in 3 images, 5 crowd or difficult")
    put_truth(folder, document | {"annotations": document["annotations"][2:]})
    limited = programs.call("tools/train.py", *args, "eval.limit=1", folder=folder)
    assert not failure(limited, "val: nothing to evaluate", "0 objects to find in 1 images", "eval.limit")
    assert {path.name for path in (folder / "run").iterdir()} == {".lock"}


def test_ids_of_annotations_may_begin_at_0_and_not_repeat(folder: Path) -> None:
    """pycocotools takes an object of id 0 for none, and one of two with the same id for the other."""
    document = truth()
    put_truth(folder, document | {"annotations": [one | {"id": one["id"] - 1} for one in document["annotations"]]})
    assert figures(score(folder, perfect()))["coco_ap"] == 1.0
    put_truth(folder, document | {"annotations": [one | {"id": 5} for one in document["annotations"]]})
    result = score(folder, perfect())
    assert figures(result)["coco_ap"] == 1.0 and "4 annotations with the id of an earlier one" in result.stderr


ODD_IDS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "text": (lambda one: {"image_id": str(one["image_id"])}, "5 values of image_id written as text or decimals"),
    "decimals": (lambda one: {"image_id": float(one["image_id"])}, "5 values of image_id written as text"),
    "decimals of categories": (lambda one: {"category_id": f"{one['category_id']}.0"}, "5 values of category_id"),
    "files": (lambda one: {"image_id": f"{one['image_id']}.png"}, "5 values of image_id that are names of files"),
    "paths": (lambda one: {"image_id": f"val/{one['image_id']}.png"}, "5 values of image_id that are names of files"),
}


@pytest.mark.parametrize("name", ODD_IDS)
def test_ids_that_are_written_otherwise_are_read(folder: Path, name: str) -> None:
    change, said = ODD_IDS[name]
    result = score(folder, [one | change(one) for one in perfect()])
    assert figures(result)["coco_ap"] == 1.0 and said in result.stderr
    assert result.stderr.count("d.json: 5 values") == 1


def test_detections_of_other_data_are_left_out_and_counted(folder: Path) -> None:
    others = [perfect()[0] | other for other in ({"image_id": 99}, {"image_id": "x"}, {"category_id": 8})]
    result = score(folder, [*perfect(), *others])
    assert figures(result)["coco_ap"] == 1.0
    assert "2 detections left out, as val has no such image" in result.stderr
    assert "1 detections left out, as val has no such category" in result.stderr
    programs.assert_contract(score(folder, others), 3, "d.json: no detection is of an image and a category of 'val'")
    args = ("--config", "c.yaml", "--detections", "d.json", "--output-dir", "out", "data.strict=true")
    refused = programs.call("tools/eval.py", *args, folder=folder)
    assert not failure(refused, "d.json")


def test_a_name_that_may_be_two_images_is_refused(folder: Path) -> None:
    document = truth()
    document["images"][0]["file_name"], document["images"][1]["file_name"] = "2.png", "1.png"
    put_truth(folder, document)
    result = score(folder, [one | {"image_id": str(one["image_id"])} for one in perfect()])
    assert not failure(result, "d.json#/0/image_id", "may be any of 2 images")


def test_of_200_detections_coco_counts_100_and_voc_all(folder: Path) -> None:
    noise = [perfect()[0] | {"bbox": [50, 40, 2 + k / 200, 3], "score": 0.9} for k in range(199)]
    document = truth()
    put_truth(folder, document | {"annotations": document["annotations"][:1]})
    for score_of_hit, expected in ((0.95, 1.0), (0.5, 0.0)):
        found = figures(score(folder, [*noise, perfect()[0] | {"score": score_of_hit}]))
        assert found["coco_ap"] == pytest.approx(expected) and found["voc_area_ap50"] > 0


def test_boxes_without_area_are_scored_as_misses(folder: Path) -> None:
    flat = [one | {"bbox": [*one["bbox"][:2], 0, 0], "score": 0.95} for one in perfect()]
    found = figures(score(folder, [*perfect(), *flat]))
    assert 0 < found["coco_ap"] < 1 and 0 < found["voc_area_ap50"] < 1


# ---------------------------------------------------------------- ties


def tied(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns detections of few scores, and the same in another order that keeps the order within an image."""
    chance = np.random.default_rng(seed)
    found = []
    for one in 8 * perfect():
        box = [float(value) for value in np.array(one["bbox"]) + chance.integers(0, 9, 4)]
        found.append(one | {"bbox": box, "score": float(chance.choice([0.3, 0.6]))})
    places = {image: [k for k, one in enumerate(found) if one["image_id"] == image] for image in BOXES}
    shuffled = [found[places[found[k]["image_id"]].pop(0)] for k in chance.permutation(len(found))]
    assert shuffled != found
    return found, shuffled


def test_equal_scores_are_ranked_by_image_then_by_place(folder: Path, tmp_path: Path) -> None:
    table = load(folder / "data", ["val"])
    backends = ["pycocotools", *(["hotcoco"] if importlib.util.find_spec("hotcoco") else [])]
    for seed in range(20):
        scored = []
        for number, document in enumerate(tied(seed)):
            (tmp_path / f"{number}.json").write_text(json.dumps(document))
            packed = read_detections(tmp_path / f"{number}.json", table)
            results = [coco.evaluate(table, packed, name)["metrics"] for name in backends]
            scored.append([*results, voc.evaluate(table, packed)["metrics"]])
        assert scored[0] == scored[1] and scored[0][0] == scored[0][-2]
    first, second = (figures(score(folder, document)) for document in tied(0))
    assert first == second


def test_the_comparison_sees_an_order_within_an_image(folder: Path, tmp_path: Path) -> None:
    """A control: detections of one image and class and of equal score, whose order is documented to count."""
    table = load(folder / "data", ["val"])
    hit, miss = perfect()[0], perfect()[0] | {"bbox": [50, 40, 5, 5]}
    found = []
    for document in ([hit, miss], [miss, hit]):
        (tmp_path / "d.json").write_text(json.dumps(document))
        found.append(voc.evaluate(table, read_detections(tmp_path / "d.json", table))["metrics"]["voc_area_ap50"])
    assert found[0] > found[1]


# ---------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["scores", "boxes"])
def test_what_is_not_finite_is_never_scored(folder: Path, key: str, value: float, monkeypatch: Any) -> None:
    """pycocotools calls a box of NaNs a hit; that this data shows it is the control."""
    table = load(folder / "data", ["val"])
    (folder / "d.json").write_text(json.dumps(perfect()))
    packed = read_detections(folder / "d.json", table)
    packed[key][:] = value
    for evaluate in (coco.evaluate, voc.evaluate):
        with pytest.raises(DataError, match="is not finite"):
            evaluate(table, packed)
    if key == "boxes" and math.isnan(value):
        monkeypatch.setattr(coco, "check", lambda table, found: Detections(**found))
        assert coco.evaluate(table, packed, "pycocotools")["metrics"]["coco_ap"] == 1.0


def test_a_table_takes_only_its_own_rows_and_labels(folder: Path) -> None:
    table = load(folder / "data", ["val"])
    good = {"rows": [0], "boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1]}
    check(table, good)
    for key, values in (("rows", (-1, 3)), ("labels", (0, 4))):
        for value in values:
            with pytest.raises(DataError):
                check(table, good | {key: [value]})
