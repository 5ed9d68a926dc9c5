"""The commands as a user runs them: real processes, real files."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from waiting import HANG, wait_for

from grcn.config.files import print_config
from grcn.engine.checkpoint import load
from grcn.run.html_report import write_report

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model.width=8", "model.head.dim=16", "data.train_images=8", "data.test_images=4", "train.batch=2",
    "train.warmup=0", "train.steps=4", "train.log_every=2", "run.workers=0", "run.threads=1", "run.device=cpu",
]  # fmt: skip

SCALED = ("images", "megapixels", "objects", "classes")


def call(tool, *args, launcher=()):
    """Runs a tool in a process of its own, or under a launcher; returns its stdout and stderr."""
    with tempfile.TemporaryDirectory() as folder:
        if not launcher:
            done = programs.call(str(tool), *args, folder=Path(folder))
            assert done.code == 0, done
            return done.stdout, done.stderr
        command = [*launcher, *map(str, (tool, *args))]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def call_here(monkeypatch, capfd, tool, *args, code):
    """Runs a tool in this process, which spares the seconds that importing torch takes; returns its stderr."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(ROOT / tool), *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / tool), run_name="__main__")
    assert stopped.value.code == code
    return capfd.readouterr().err


def train(config, folder, *args, launcher=()):
    return call(ROOT / "tools/train.py", "--config", config, "--output-dir", folder, *args, launcher=launcher)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of G-RCN on built-in images, and its metrics."""
    folder = tmp_path_factory.mktemp("runs") / "grcn"
    stdout, stderr = train(ROOT / "configs/shapes/grcn_tiny.yaml", folder, *SMALL)
    assert "Traceback" not in stderr
    return folder, json.loads(stdout.splitlines()[-1])


def test_a_run_leaves_what_it_promises(finished):
    folder, metrics = finished
    assert {"voc07_ap50", "voc07_ap70", "voc_area_ap75", "coco_ap", "coco_ap_small"} <= set(metrics)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"config.yaml", "env.json", "metrics.jsonl", "vis/inputs.png"}
    files = ("results.json", "detections.json", "per_class.csv", "detections.png", "pr_iou50.png")
    evaluation = {f"eval/step_4/{name}" for name in files}
    assert expected | evaluation <= names
    assert len(list((folder / "checkpoints").glob("step_00000004-*.pt"))) == 1
    assert json.loads((folder / "eval/step_4/results.json").read_text())["metrics"] == metrics
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4] and lines[-1]["metrics"] == metrics


def test_a_finished_run_is_not_run_again(finished, monkeypatch, capfd):
    folder, metrics = finished
    args = ["--config", ROOT / "configs/shapes/grcn_tiny.yaml", "--output-dir", folder, *SMALL]
    stdout, _ = call(ROOT / "tools/train.py", *args, "--resume")
    assert json.loads(stdout) == metrics
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *args, code=2)
    assert "not empty" in stderr and "--resume" in stderr and "Traceback" not in stderr
    kept = (folder / "config.yaml").read_bytes()
    few = [*args, "--resume", "--allow-changes", "train.steps=3"]
    assert_one_line(
        call_here(monkeypatch, capfd, "tools/train.py", *few, code=2), "past the end (got step 4, train.steps"
    )
    assert (folder / "config.yaml").read_bytes() == kept
    again, _ = call(ROOT / "tools/train.py", "--config", folder / "config.yaml", "--resume")
    assert json.loads(again) == metrics, "the config of a run leads to its folder"
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *args, "--resume", "train.lr=0.5", code=2)
    assert "train.lr: 0.06 -> 0.5" in stderr and "--allow-changes" in stderr
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *args, "--resume", "eval.limit=2", code=2)
    assert "evaluated under other settings; use grcn eval" in stderr and "eval.limit: null -> 2" in stderr
    other = [*args, "--resume", "--allow-changes", "model.roi.nms=0.9"]
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *other, code=2)
    assert "evaluated under other settings" in stderr and "model.roi.nms: 0.3 -> 0.9" in stderr


def test_a_run_that_lacks_its_evaluation_only_is_evaluated_on_request(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    args = ["--config", folder / "config.yaml", "--resume", "--allow-changes", "eval.limit=2", "model.roi.nms=0.4"]
    done = programs.call("tools/train.py", *args, folder=tmp_path)
    stderr = done.stderr
    assert done.code == 0 and "finished" not in stderr
    assert "continuing with a changed setting: model.roi.nms: 0.3 -> 0.4" in stderr
    assert json.loads((folder / "eval/step_4/results.json").read_text())["images"] == 2
    assert "continuing with a changed setting: eval.limit: null -> 2" in stderr
    done = programs.call("tools/train.py", "--config", finished[0] / "config.yaml", "--output-dir", folder, "--resume",
                         folder=tmp_path)  # fmt: skip
    assert done.code == 2 and "eval.limit: 2 -> null" in done.stderr, "what is on record is of two images"
    args = ["--config", folder / "config.yaml", "--resume", "--allow-changes", "train.steps=5", "eval.limit=3"]
    done = programs.call("tools/train.py", *args, folder=tmp_path)
    assert done.code == 0 and "continuing with a changed setting: eval.limit: " in done.stderr, (
        "what is the best, is chosen among all evaluations"
    )


def test_the_written_config_trains_the_same_bytes(finished, tmp_path):
    folder, _ = finished
    train(folder / "config.yaml", tmp_path / "again")
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (folder, tmp_path / "again")]
    assert names[0] == names[1]
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "again" / "metrics.jsonl").read_bytes()


def test_a_checkpoint_and_its_detections_score_the_same(finished, tmp_path):
    folder, metrics = finished
    config, tool = folder / "config.yaml", ROOT / "tools/eval.py"
    (weights,) = (folder / "checkpoints").glob("step_*.pt")
    stdout, _ = call(tool, "--config", config, "--checkpoint", weights, "--output-dir", tmp_path / "a")
    assert json.loads(stdout.splitlines()[-1]) == metrics
    assert (tmp_path / "a/devkit/comp4_det_test_sun.txt").exists()
    for number, source in enumerate((tmp_path / "a/detections.json", tmp_path / "a/devkit")):
        stdout, _ = call(tool, "--config", config, "--detections", source, "--output-dir", tmp_path / str(number))
        assert json.loads(stdout.splitlines()[-1]) == pytest.approx(metrics, abs=1e-6)


def test_a_checkpoint_is_not_evaluated_under_other_settings(finished, tmp_path, monkeypatch, capfd):
    """Normalisation, image size or anchors change no weight's shape, and all of the result."""
    folder, _ = finished
    (weights,) = (folder / "checkpoints").glob("step_*.pt")
    args = ["--config", folder / "config.yaml", "--checkpoint", weights, "--output-dir", tmp_path]
    stderr = call_here(monkeypatch, capfd, "tools/eval.py", *args, "model.image.short=64", code=2)
    assert "model.image.short: 128 -> 64" in stderr and "--allow-changes" in stderr and "config.yaml" in stderr
    call_here(monkeypatch, capfd, "tools/eval.py", *args, "model.image.short=64", "--allow-changes", code=0)
    call_here(monkeypatch, capfd, "tools/eval.py", *args, "model.rpn.batch=7", "model.roi.fg_iou=0.6", code=0)


def test_two_processes_train_as_one(finished, tmp_path):
    folder, metrics = finished
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    stdout, _ = train(folder / "config.yaml", tmp_path / "two", launcher=launcher)
    assert len(stdout.splitlines()) == 1
    assert json.loads(stdout.splitlines()[-1]) == pytest.approx(metrics, abs=1e-3)
    logs = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (folder, tmp_path / "two")
    ]
    for one, two in zip(*(log[:2] for log in logs), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_ctrl_c_saves_and_resume_ends_with_the_same_bytes(finished, tmp_path):
    """Stopped wherever the signal strikes; continued with more checkpoints than the straight run had."""
    config, steps = finished[0] / "config.yaml", "train.steps=40"
    train(config, tmp_path / "straight", steps)
    command = [sys.executable, ROOT / "tools/train.py", "--config", config, "--output-dir", tmp_path / "run", steps]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run/metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text() != "", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANG)
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    (saved,) = (tmp_path / "run/checkpoints").glob("step_*.pt")
    assert 2 <= int(saved.name[5:13]) < 40
    train(config, tmp_path / "run", steps, "--resume", "train.checkpoint_every=7")
    states = [load(*(tmp_path / run / "checkpoints").glob("step_00000040-*")) for run in ("straight", "run")]
    for key in ("model", "optimizer"):
        assert_close(states[0][key], states[1][key], rtol=0, atol=0)
    for name in ("metrics.jsonl", "eval/step_40/detections.json"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_print_config_and_dry_run_write_nothing(tmp_path, monkeypatch):
    config = ROOT / "configs/voc/grcn_vgg16.yaml"
    printed = print_config(config, ["train.lr=3e-4"])
    stdout, _ = call(ROOT / "tools/train.py", "--config", config, "--print-config", "train.lr=3e-4")
    assert stdout == printed
    assert "lr: 0.0003" in stdout and "# command line" in stdout and "# default" in stdout
    assert "grcn_vgg16.yaml:" in stdout and "_base/voc.yaml:" in stdout
    stdout, stderr = train(ROOT / "configs/shapes/grcn_tiny.yaml", tmp_path / "run", "--dry-run", *SMALL)
    assert "detected in 2 test images" in stderr and "a checkpoint takes 1 MB" in stderr
    assert "without effect" not in stderr
    assert set(json.loads(stdout)) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert list(tmp_path.iterdir()) == []


def test_settings_without_effect_are_reported_in_one_line(tmp_path, monkeypatch, capfd):
    config = ROOT / "configs/shapes/grcn_tiny.yaml"
    arguments = ("--config", config, "--output-dir", tmp_path / "run", "--dry-run", *SMALL)
    stderr = call_here(
        monkeypatch, capfd, "tools/train.py", *arguments, "train.gamma=0.5", "model.head={kind: conv, dropout: 0.5}",
        code=0,
    )  # fmt: skip
    found = "model.head.dropout (model.head.kind is conv), train.gamma (train.schedule is cosine)"
    assert stderr.splitlines().count(f"grcn: without effect here: {found}") == 1 == stderr.count("without effect")
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *arguments, "train.warmup=50", code=0)
    assert "grcn: train.lr is never reached (train.warmup is 50, train.steps 4)" in stderr.splitlines()


XML = """<annotation><filename>{stem}.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>{name}</name><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"""


@pytest.fixture
def devkit(tmp_path):
    """A VOC folder of four images with a cat or a dog, and a config for it."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    stems = [f"00000{i}" for i in range(4)]
    for i, stem in enumerate(stems):
        pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(XML.format(stem=stem, name=("cat", "dog")[i % 2]))
    for split in ("trainval", "test"):
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    config = tmp_path / "small.yaml"
    config.write_text(
        "model: {backbone: tiny, width: 8, image: {short: 48, max: 64}, anchors: {sizes: [16, 32]}, head: {dim: 16}}\n"
        f"data: {{format: voc, root: '{root.parent}', train: [VOC2007/trainval], test: [VOC2007/test]}}\n"
        "train: {steps: 2, batch: 2}\nrun: {workers: 1, device: cpu, threads: 1}\n"
    )
    return root, config


def test_a_voc_folder_trains(devkit, tmp_path):
    _, config = devkit
    stdout, _ = train(config, tmp_path / "run")
    assert json.loads(stdout)["voc07_ap70"] is not None
    per_class = (tmp_path / "run/eval/step_2/per_class.csv").read_text().splitlines()
    assert len(per_class) == 21 and any(line.startswith("dog,") for line in per_class)


def test_a_run_with_initial_weights_can_be_started_again(finished, tmp_path, monkeypatch, capfd):
    """The same command line, with --init and --resume, begins with the weights and continues without."""
    (weights,) = (finished[0] / "checkpoints").glob("step_*.pt")
    config = finished[0] / "config.yaml"
    args = ["--config", config, "--init", weights, "--resume", "--allow-changes", "--output-dir"]
    for folder, stages in (("straight", [6]), ("parts", [2, 6])):
        for steps in stages:
            settings = [f"train.steps={steps}", "train.log_every=6", "train.schedule=step", "eval.limit=1"]
            call_here(monkeypatch, capfd, "tools/train.py", *args, tmp_path / folder, *settings, code=0)
    names = [next((tmp_path / run / "checkpoints").glob("step_00000006-*")) for run in ("straight", "parts")]
    states = [load(name) for name in names]
    assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    stderr = call_here(
        monkeypatch, capfd, "tools/train.py", *args[:4], "--output-dir", tmp_path, "--resume-from", weights, code=2
    )
    assert_one_line(stderr, "argument --init: not allowed with argument --resume-from")
    assert_one_line(call_here(monkeypatch, capfd, "tools/train.py", code=2), "required: --config; see --help")


def test_where_a_run_starts_from(devkit, tmp_path, monkeypatch, capfd):
    """Classes in another order fit every shape; a copy of a checkpoint may have any name."""
    root, config = devkit
    train(config, tmp_path / "run", "data.classes=[cat, dog]")
    (weights,) = (tmp_path / "run/checkpoints").glob("step_*.pt")
    copy = weights.with_name("step_latest.pt")
    copy.write_bytes(weights.read_bytes())
    args = ["--config", config, "--output-dir", tmp_path / "other"]
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *args, "--init", copy, "data.classes=[dog, cat]", code=4)
    assert_one_line(stderr, "class 1 is 'cat' in it, 'dog' in the data")
    again = [*args, "--init", copy, "data.classes=[cat, dog]"]
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *again, "model.anchors.sizes=[8, 9]", code=2)
    assert_one_line(stderr, "trained with other anchors")
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *again, "model.width=16", code=4)
    assert_one_line(stderr, f"{copy}: checkpoint of step 2: ")
    call_here(monkeypatch, capfd, "tools/train.py", *again, code=0)
    args = ["--config", config, "--output-dir", tmp_path / "run", "--resume-from", copy]
    call_here(monkeypatch, capfd, "tools/train.py", *args, "data.classes=[cat, dog]", code=0)
    (root / "ImageSets/Main/test.txt").write_text("000000\n")
    (root / "Annotations/000000.xml").write_text(
        XML.format(stem="000000", name="cat").split("<object>")[0] + "</annotation>"
    )
    args = ["--config", config, "--output-dir", tmp_path / "third"]
    assert_one_line(call_here(monkeypatch, capfd, "tools/train.py", *args, code=3), "VOC2007/test: nothing to evaluate")


def broken_xml(root):
    (root / "Annotations/000002.xml").write_text("<annotation><object>")


def truncated_jpeg(root):
    path = root / "JPEGImages/000001.jpg"
    path.write_bytes(path.read_bytes()[:400])


def missing_image(root):
    (root / "JPEGImages/000003.jpg").unlink()


@pytest.mark.parametrize(
    "fault, named",
    [(broken_xml, "000002.xml"), (truncated_jpeg, "000001.jpg"), (missing_image, "000003.jpg")],
)
def test_faults_of_the_data_are_one_line_and_exit_3(devkit, tmp_path, fault, named, monkeypatch, capfd):
    root, config = devkit
    fault(root)
    args = ["--config", config, "--output-dir", tmp_path / "run"]
    assert_one_line(call_here(monkeypatch, capfd, "tools/train.py", *args, code=3), named)


@pytest.mark.parametrize(
    "args, code, named",
    [
        (["model.strde=8"], 2, "unknown key 'model.strde'"),
        (["train.lr=fast"], 2, "train.lr: expected a number"),
        (["train.batch=1000000000"], 2, "train.batch: expected at most 100000"),
        (["data.root=nowhere"], 3, "nowhere"),
        (["--init", "nowhere.pt"], 4, "nowhere.pt"),
        (["run.device=cuda:99"], 5, "cuda:99"),
        (["train.batch=3", "train.accumulate=2"], 2, "train.accumulate"),
        (["model.split=2"], 2, "model.split"),
        (["model.context={on: cls, heads: 3}"], 2, "model.context.heads"),
        (["--output-dir", __file__], 2, "not a folder"),
        (["--output-dir", f"{__file__}/run"], 5, "Not a directory"),
    ],
)
def test_mistakes_are_one_line_and_have_their_code(devkit, tmp_path, args, code, named, monkeypatch, capfd):
    args = ["--config", devkit[1], "--output-dir", tmp_path / "run", *args]
    assert_one_line(call_here(monkeypatch, capfd, "tools/train.py", *args, code=code), named)


def assert_one_line(stderr, named):
    errors = [line for line in stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith("grcn: error: ") and named in errors[0], stderr
    assert len(errors[0]) <= 320 and "Traceback" not in stderr


@pytest.mark.parametrize("native", [True, False])
def test_bf16_on_a_cpu_without_it_is_warned_of(monkeypatch, capfd, tmp_path, native):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)
    config = ROOT / "configs/shapes/grcn_tiny.yaml"
    arguments = ("--config", config, "--output-dir", tmp_path / "run", "--dry-run", "run.amp=bf16", *SMALL)
    stderr = call_here(monkeypatch, capfd, "tools/train.py", *arguments, code=0)
    assert ("run.amp=bf16: this CPU only emulates bfloat16" in stderr) != native


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_what_the_config_says(monkeypatch, capfd, tmp_path, tf32):
    torch.backends.cuda.matmul.allow_tf32 = not tf32
    config = ROOT / "configs/shapes/grcn_tiny.yaml"
    arguments = ("--config", config, "--output-dir", tmp_path / "run", "--dry-run", f"run.tf32={tf32}", *SMALL)
    call_here(monkeypatch, capfd, "tools/train.py", *arguments, code=0)
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # torch's default


def test_scaling_is_measured_and_plotted(monkeypatch, capfd, tmp_path):
    pytest.importorskip("matplotlib")
    config = ROOT / "configs/shapes/faster_rcnn_tiny.yaml"
    sizes = ("model.image.short=32", "model.image.max=32", "model.width=4", "model.head.dim=8")
    arguments = ("--config", config, "--repeats", "1", "--scaling", tmp_path / "curves.png", *sizes, "run.threads=1")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools/benchmark.py"), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if line.lstrip().startswith(SCALED)]
    assert stopped.value.code == 0 and len(rows) == 19
    assert all(float(step) > 0 and float(infer) > 0 for _, _, step, infer in rows)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_benchmark_describes_and_measures(monkeypatch, capfd):
    config = ROOT / "configs/shapes/grcn_tiny_resnet.yaml"
    stdout, _ = call(ROOT / "tools/benchmark.py", "--config", config, "--json", "--repeats", "1", "run.threads=1")
    found = json.loads(stdout)
    assert found["strides"] == {"cls": [16], "loc": [8]}
    compared = [f"{prefix}{name}" for prefix in ("", "infer_") for name in (
        "floor_ms", "torchvision_ms", "ratio_to_floor", "ratio_to_torchvision", "ratio_to_baseline")]  # fmt: skip
    for name in ("step_ms", "infer_ms", *compared, "loader_img_s", "peak_mb"):
        assert found[name] > 0
    assert found["evaluation"]["images"] == 500 and found["data_wait_ms"] >= 0
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--config", str(config), "--describe"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    out = capfd.readouterr().out
    assert f"{found['parameters']:,}" in out and "loc branch" in out and "training step" not in out
    assert_one_line(
        call_here(monkeypatch, capfd, "tools/benchmark.py", "--config", config, "model.split=9", code=2), ""
    )
    for wrong, named in (
        (["--repeats", "0"], "--repeats"),
        (["--scaling", "x.foo"], "x.foo"),
        (["--scaling", "nowhere/x.png"], "nowhere"),
        (["--scaling", "x.png", "--batch", "2"], "--batch"),
        (["--scaling", "x.png", "--describe"], "--describe"),
        (["--minutes", "5"], "--minutes"),
    ):
        stderr = call_here(monkeypatch, capfd, "tools/benchmark.py", "--config", config, *wrong, code=2)
        assert_one_line(stderr, named)


def test_the_suite_for_a_gpu_asks_for_one(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for settings, code, named in ((["run.device=auto"], 5, "torch sees no GPU"), (["run.amp=none"], 2, "run.amp")):
        stderr = call_here(
            monkeypatch, capfd, "tools/benchmark.py", "--gpu-suite", tmp_path / "out", *settings, code=code
        )
        assert_one_line(stderr, named)
    assert not (tmp_path / "out").exists()


def test_torchvisions_detector_is_trained_in_place_of_ours(tmp_path, monkeypatch, capfd):
    config = ROOT / "configs/shapes/faster_rcnn_tiny.yaml"
    stdout, stderr = train(config, tmp_path / "run", "--torchvision", *SMALL)
    assert json.loads(stdout.splitlines()[-1])["coco_ap"] is not None
    assert (
        stderr.count(
            "torchvision's detector keeps its own model.anchors.layout 'torchvision' (not 'centred'), "
            "model.rpn.straddling true (not false)"
        )
        == 1
    )
    path = next((tmp_path / "run/checkpoints").glob("step_00000004-*.pt"))
    state = load(path)
    assert "rpn.head.cls_logits.weight" in state["model"] and "roi_heads.box_head.fc6.weight" in state["model"]
    stderr = call_here(
        monkeypatch, capfd, "tools/train.py", "--config", config, "--output-dir", tmp_path / "run", "--resume", *SMALL,
        "train.steps=5", "--allow-changes", code=4,
    )  # fmt: skip
    assert "of torchvision's detector" in stderr
    for tool, *arguments in (
        ("tools/eval.py", "--config", tmp_path / "run/config.yaml"),
        ("tools/predict.py", tmp_path / "run/vis/inputs.png"),
    ):
        into = ("--output-dir", tmp_path / "none")
        stderr = call_here(monkeypatch, capfd, tool, *arguments, "--checkpoint", path, *into, code=4)
        assert_one_line(stderr, f"{path}: checkpoint of step 4: of torchvision's detector; pass one of ours, or ")
    stderr = call_here(
        monkeypatch, capfd, "tools/train.py", "--config", config, "--output-dir", tmp_path / "none", "--torchvision",
        *SMALL, "model.roi.add_gt=false", code=2,
    )  # fmt: skip
    assert_one_line(stderr, "model.roi.add_gt: torchvision's detector has true (got false); set that")
    assert not (tmp_path / "none").exists()
    separate = ROOT / "configs/shapes/detect_f_tiny.yaml"
    stderr = call_here(monkeypatch, capfd, "tools/train.py", "--config", separate, "--torchvision", *SMALL, code=2)
    assert "is not torchvision's FasterRCNN; set model.split=none" in stderr


def test_a_run_ends_with_a_report_in_one_file(finished, tmp_path):
    folder, metrics = finished
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # losses, inputs, three curves of precision, detections
    assert f"<td>{100 * metrics['coco_ap']:.1f}</td>" in page and "train.lr" not in page
    assert "<td>sun</td>" in page and "steps: 4" in page and "Content-Security-Policy" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    hostile = tmp_path / "<script>" / "seed0"
    shutil.copytree(folder, hostile)
    write_report(hostile, 4, pictures=False)
    page = (hostile / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and page.count("data:image") == 5
