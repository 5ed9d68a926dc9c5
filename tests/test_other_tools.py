"""The code in docs/other_tools.md reads grcn's files, and passes them to the other tools in their format.

These are not installed: stand-ins of the few names that the page uses have their signatures, keep what they are given,
and refuse what the real ones, in which the page was run, refuse.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import coco_made
import documented
import numpy as np
import programs
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/other_tools.md").read_text(encoding="utf-8")
RUN = "runs/shapes/grcn_tiny/seed0"
MLFLOW_NAME = re.compile(r"[/\w.\- :]+")  # of a metric


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps, predictions of its detector and the data they are of."""
    place: Path = tmp_path_factory.mktemp("place")
    images = [f"val2017/im{number}.jpg" for number in (5, 6)]
    coco_made.write(place / "data/coco", coco_made.document(), *images, name="annotations/instances_val2017.json")
    (place / "photos").mkdir()
    Image.new("RGB", (40, 80), "red").save(place / "photos/red.png")
    words = [
        "--config", ROOT / "configs/coco/faster_rcnn_vgg16.yaml", "--output-dir", RUN,
        *documented.settings("configs/coco/faster_rcnn_vgg16.yaml"), "data.root=data/coco", "data.train=[val2017]",
        "data.test=[val2017]", "model.roi.score_thresh=0", "run.tensorboard=true",
    ]  # fmt: skip
    done = programs.call("tools/train.py", *words, folder=place)
    assert done.code == 0, done.stderr
    (checkpoint,) = (place / RUN / "checkpoints").glob("*.pt")
    done = programs.call(
        "tools/predict.py", "--checkpoint", checkpoint, "--score-threshold", "0.01", "photos", folder=place
    )
    assert done.code == 0, done.stderr
    (detections,) = (place / RUN).glob("eval/step_2/detections.json")
    (place / "detections.json").write_bytes(detections.read_bytes())
    return place


def run(place: Path, monkeypatch: pytest.MonkeyPatch, modules: dict[str, dict[str, Any]], words: str) -> dict[str, Any]:
    """Runs the one block of the page that has these words, with stand-ins of modules; returns its names."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if words in code)
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    names: dict[str, Any] = {}
    with chdir(place):
        exec(compile(code, "other_tools.md", "exec"), names)
    return names


def log(place: Path) -> dict[str, dict[int, float]]:
    """What ``metrics.jsonl`` says of each figure, by step."""
    found: dict[str, dict[int, float]] = {}
    for line in (place / RUN / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for kind, figures in (("train", entry), ("test", entry.get("metrics", {}))):
            for name, value in figures.items():
                if name not in ("step", "metrics") and value is not None:
                    found.setdefault(f"{kind}/{name}", {})[entry["step"]] = value
    return found


def test_events_are_where_trackio_looks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    given: list[tuple[str, str]] = []

    def import_tf_events(log_dir: str, project: str, name: str | None = None) -> None:
        given.append((log_dir, project))

    run(place, monkeypatch, {"trackio": {"import_tf_events": import_tf_events}}, "import trackio")
    assert given == [("runs", "grcn")]
    (file,) = (place / "runs").rglob("*tfevents*")
    assert file.parent == place / RUN / "tensorboard"
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert set(events.Tags()["scalars"]) == set(log(place)) >= set(re.findall(r"`((?:train|test)/\w+)`", PAGE))


def test_mlflow_and_wandb_get_the_log(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, dict[int, float]] = {}
    files: list[Path] = []
    configs: list[dict[str, Any]] = []
    steps = [0]

    def log_metrics(metrics: dict[str, float], step: int) -> None:
        assert step >= steps[-1]  # wandb ignores what comes late
        steps.append(step)
        for name, value in metrics.items():
            assert MLFLOW_NAME.fullmatch(name) and math.isfinite(value)
            logged.setdefault(name, {})[step] = value

    @contextmanager
    def start_run(run_name: str) -> Iterator[None]:
        yield

    @contextmanager
    def init(project: str, name: str, config: dict[str, Any]) -> Iterator[SimpleNamespace]:
        configs.append(config)
        yield SimpleNamespace(log=log_metrics)

    mlflow = {"start_run": start_run, "log_metrics": log_metrics, "log_artifact": files.append}
    for modules, words in (({"mlflow": mlflow}, "import mlflow"), ({"wandb": {"init": init}}, "import wandb")):
        run(place, monkeypatch, modules, words)
        assert logged == {name.partition("/")[2]: values for name, values in log(place).items()}
        assert set(logged["loss"]) == {1, 2} and set(logged["coco_ap"]) == {2}
        logged.clear()
        steps.clear()
        steps.append(0)
    assert [(place / file).exists() for file in files] == [True]
    assert [config["train"]["steps"] for config in configs] == [2]


@dataclass
class Detections:
    """Of supervision: one row of every array for each detection."""

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    tracker_id: np.ndarray | None = None
    data: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.xyxy.ndim == 2 and self.xyxy.shape[1] == 4
        for values in (self.confidence, self.class_id, *self.data.values()):
            assert values is not None and values.shape == (len(self.xyxy),)


def xywh_to_xyxy(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


SUPERVISION = {"supervision": {"Detections": Detections, "xywh_to_xyxy": xywh_to_xyxy}}


def predictions(place: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((place / "predictions/predictions.json").read_text())
    assert document["images"][0]["detections"]
    return document


def test_supervision_gets_predictions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(place, monkeypatch, SUPERVISION, "class_name")["detections"]
    (image,) = predictions(place)["images"]
    assert found.xyxy.round(2).tolist() == [pytest.approx(one["box"], abs=0.01) for one in image["detections"]]
    assert [*zip(found.class_id, found.data["class_name"], strict=True)] == [
        (one["label"], one["name"]) for one in image["detections"]
    ]
    assert found.confidence == pytest.approx([one["score"] for one in image["detections"]])


def test_supervision_takes_an_image_in_which_nothing_was_found(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = predictions(place)
    empty["images"][0]["detections"] = []
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/predictions.json").write_text(json.dumps(empty))
    found = run(tmp_path, monkeypatch, SUPERVISION, "class_name")["detections"]
    assert found.xyxy.shape == (0, 4)


def test_supervision_gets_the_detections_of_an_image_of_an_evaluation(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(place, monkeypatch, SUPERVISION, "category_id")["detections"]
    records = json.loads((place / "detections.json").read_text())
    assert {one["image_id"] for one in records} == {5, 6}
    first = [one for one in records if one["image_id"] == records[0]["image_id"]]
    assert found.xyxy[:, 2:] - found.xyxy[:, :2] == pytest.approx(np.array([one["bbox"][2:] for one in first]))
    assert found.class_id.tolist() == [one["category_id"] for one in first]


class Fields(SimpleNamespace):
    """Of FiftyOne: a sample, whose fields are set as items, or a label."""

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)


class Dataset:
    """Of FiftyOne: keeps its samples, and answers for COCO's layout with a sample for each image."""

    def __init__(self, name: str | None = None) -> None:
        self.samples: list[Fields] = []

    @classmethod
    def from_dir(
        cls, *, dataset_type: str, data_path: str, labels_path: str, label_field: dict[str, str], include_id: bool
    ) -> Dataset:
        dataset = cls()
        assert set(label_field) == {"detections", "coco_id"} and include_id  # a name alone would be a prefix of both
        for image in json.loads(Path(labels_path).read_text())["images"]:
            assert (Path(data_path) / image["file_name"]).exists()
            fields = {"detections": [], "coco_id": image["id"]}
            dataset.add_sample(Fields(**{label_field[name]: value for name, value in fields.items()}))
        return dataset

    def add_sample(self, sample: Fields) -> None:
        self.samples.append(sample)

    def evaluate_detections(self, pred_field: str, *, gt_field: str, eval_key: str) -> None:
        assert all(hasattr(sample, name) for sample in self.samples for name in (pred_field, gt_field))


def add_coco_labels(
    dataset: Dataset,
    label_field: str,
    labels_or_path: str,
    categories: list[dict[str, Any]],
    coco_id_field: str | None = None,
) -> None:
    """Without a field of ids, ``image_id`` is taken for the place of an image, which is hardly ever right."""
    assert coco_id_field is not None
    names = {category["id"]: category["name"] for category in categories}
    by_image: dict[int, list[tuple[str, float]]] = {}
    for record in json.loads(Path(labels_or_path).read_text()):
        assert len(record["bbox"]) == 4
        by_image.setdefault(record["image_id"], []).append((names[record["category_id"]], record["score"]))
    for sample in dataset.samples:
        sample[label_field] = by_image.pop(getattr(sample, coco_id_field))
    assert not by_image


FIFTYONE = {
    "fiftyone": {
        "Dataset": Dataset, "Sample": Fields, "Detection": Fields, "Detections": Fields,
        "types": SimpleNamespace(COCODetectionDataset="coco"),
    },
    "fiftyone.utils": {},
    "fiftyone.utils.coco": {"add_coco_labels": add_coco_labels},
}  # fmt: skip


def test_fiftyone_gets_predictions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = run(place, monkeypatch, FIFTYONE, "fo.Sample")["dataset"]
    (sample,), (image,) = dataset.samples, predictions(place)["images"]
    assert (place / sample.filepath).exists()
    for label, one in zip(sample.grcn.detections, image["detections"], strict=True):
        x, y, w, h = label.bounding_box
        assert [40 * x, 80 * y, 40 * (x + w), 80 * (y + h)] == pytest.approx(one["box"])
        assert (label.label, label.confidence) == (one["name"], one["score"])


def test_fiftyone_gets_detections_beside_the_objects(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = run(place, monkeypatch, FIFTYONE, "add_coco_labels")["dataset"]
    assert [sample.coco_id for sample in dataset.samples] == [5, 6]
    assert {name for sample in dataset.samples for name, _ in sample.grcn} <= {"cup", "nut"}
