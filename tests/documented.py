"""The commands of README.md and docs/, and what makes each short enough to run in a test.

Every line of a code block without a language, or of ``bash``, is a command; a block that begins with ``#!`` is one.
They run in a folder that looks like a checkout, in the order of the pages, preparing data first, so that each finds
the files that earlier ones have left there. All changes to them are listed here:

- real data sets are tiny ones, published by a local server; networks are small (``NETWORKS``, :func:`shrink`);
- settings and flags are appended (``SETTINGS``, ``FLAGS``), and there is one seed and one process, but for a torchrun
  with two;
- SLURM's commands are a shell's, with one task (:func:`stand_in_for_slurm`);
- names of the user's own files become files that an earlier command left (``FILLED``, :func:`fill`).
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import runpy
import shlex
import socket
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import downloads
import numpy as np
from PIL import Image

from grcn import build, catalog
from grcn.apps.prepare_data.published import DATA_SETS, DataSet, Split
from grcn.apps.reproduce import runs
from grcn.config.schema import ModelConfig
from grcn.data import coco, voc
from grcn.models.detector import Detector

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What does not run, and why.
FOREIGN = {
    "yolo val": "is Ultralytics",
    "python save_results.py": "is D-FINE",
    "python tools/train_net.py": "is detectron2",
    "python tools/test.py": "is mmdetection",
}
EXEMPT = FOREIGN | {
    "make test": "it would run itself",
    "make demo PYTHON=": "is make demo with a Python from elsewhere",
    "make venv": "it would run itself",
    "pip install": "downloads torch",
    "source ": "is the shell's",
    "python tools/eval.py --config coco/faster_rcnn_resnet50_fpn --initial": "downloads weights",
    "hf upload": "publishes",
    "export ": "sets a variable of the next command, which is run with it",
}
# What runs for another.
INSTEAD = {"make demo": "python tools/demo.py"}  # make would make .venv first
SHORTER = {
    "--seeds 0 1 2": "--seeds 0",
    "--nproc-per-node=4": "--nproc-per-node=2",
    "--nproc-per-node=8": "--nproc-per-node=1",
    "--nnodes=2": "--nnodes=1 --local-addr=localhost",  # which needs no name server
    "--rdzv-endpoint=host0:29500": "--rdzv-endpoint=localhost:0",
}

COMMON = (
    "model.rpn.post_nms_test=20", "model.roi.batch=16", "model.head.dim=8", "train.steps=2", "train.lr_steps=[1]",
    "train.warmup=0", "train.batch=2", "train.log_every=1", "eval.pictures=0", "run.workers=0", "run.threads=1",
    "run.device=cpu",
)  # fmt: skip
FILES = (*COMMON, "model.weights=null", "model.image={short: 48, max: 64}", "model.anchors.sizes=[16, 32]")
PYRAMID = (
    "model.backbone=tiny_resnet_fpn", "model.anchors.sizes=[[8], [16], [32], [64], [64]]", "train.accumulate=1",
)  # fmt: skip
SETTINGS = {
    "shapes": (*COMMON, "model.width=4", "data.size=64", "model.image={short: 64, max: 64}", "data.train_images=4",
               "data.test_images=2"),
    "voc": FILES,
    "coco": FILES,
    "own": (*FILES, *PYRAMID, "model.width=4"),
}  # fmt: skip
NETWORKS = {"vgg16": "model.backbone=tiny", "resnet50": "model.backbone=tiny_resnet"}  # of a config that is named
NO_SETTINGS = (
    "tools/prepare_data.py", "tools/predict.py", "tools/export.py", "tools/walkthrough.py", "tools/configs.py",
    "--gpu-suite",
)  # fmt: skip
FILLED = {
    "C": "configs/shapes/grcn_tiny.yaml",
    "W": "runs/shapes/grcn_tiny/seed0/checkpoints/step_*.pt",
    "detections.json": "runs/coco/*/seed0/eval/step_*/detections.json",
    "ours.json": "runs/coco/*/seed0/eval/step_*/detections.json",
    "theirs.json": "runs/coco/*/seed0/eval/step_*/detections.json",
    "runs/shapes/faster_rcnn_tiny/seed0": "runs/shapes/grcn_tiny/seed0",  # the only one that is there by then
    "folder/": "runs/**/devkit",
}
FLAGS = {
    "tools/benchmark.py --gpu-suite": ("--minutes", "0", "run.device=cpu"),
    "tools/benchmark.py": ("--repeats", "1"),
    "tools/reproduce.py --table 4": ("--draws", "10", "--output-dir", "runs/table4"),  # runs/voc has another network
    "tools/reproduce.py --table": ("--draws", "10"),
    "tools/reproduce.py --config": ("--draws", "10", "--seeds", "0"),
    "tools/analyze.py compare": ("--draws", "10"),
    "tools/analyze.py runs": ("--draws", "10"),
    "tools/analyze.py gradients": ("--images", "2", "--points", "1"),
}


def commands() -> list[str]:
    """Returns every command of the pages once, on one line unless it is a script; those that others build on first."""
    found: dict[str, None] = {}
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            if language in ("", "bash"):
                script = block.startswith("#!")
                lines = [block] if script else re.sub(r" +#.*", "", block.replace("\\\n", " ")).splitlines()
                # A command in the form of its launcher, which spares the start of a program.
                launched = (re.sub(r"^( *)grcn ([a-z-]+)", _launcher, line, flags=re.M) for line in lines)
                found |= dict.fromkeys(launched)
    first = ("tools/prepare_data.py", "tools/train.py --config coco/")  # later commands use what these leave
    return sorted(found, key=lambda line: not any(start in line for start in first))


def _launcher(command: re.Match[str]) -> str:
    return f"{command[1]}python tools/{command[2].replace('-', '_')}.py"


def data_of(command: str) -> str:
    """Returns the data that a command uses; the built-in ones unless it names others."""
    names = {"voc": "voc", "coco": "coco", "own.yaml": "own", "runs/own": "own"}
    return next((data for name, data in names.items() if name in command), "shapes")


def small(command: str, place: Path) -> list[str]:
    """Returns the words of a command as it runs in ``place``, its program first."""
    command = next((other for name, other in INSTEAD.items() if command.startswith(name)), command)
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    words = [fill(word, place) for word in shlex.split(command)]
    if words[0] == "torchrun":
        words += ["--output-dir", f"runs/torchrun/{len(list(place.glob('runs/torchrun/*')))}"]
    words += next((flags for start, flags in FLAGS.items() if start in command), ())
    words += () if any(tool in words for tool in NO_SETTINGS) else settings(command)
    return words[1:] if words[0] == "python" else words


def settings(command: str) -> list[str]:
    """Returns the settings that make a command short."""
    networks = [setting for name, setting in NETWORKS.items() if f"_{name}" in command]
    pyramid = PYRAMID if "_fpn" in command else ()
    pyramid += ("data.train=[train2014]", "data.test=[val2014]") if "coco" in command and pyramid else ()
    return [*SETTINGS[data_of(command)], *(networks and [*networks, *pyramid, "model.width=4"])]


def fill(word: str, place: Path) -> str:
    """Replaces the placeholder of a file by an existing one."""
    if "…" in word:  # of a checkpoint's name
        pattern = re.sub(r"(step_|best-)[^/]*…", r"\1*", word)
    elif word in FILLED:
        pattern = FILLED[word]
    else:
        return word
    found = sorted(place.glob(pattern))
    assert found, f"{word}: no command before has left {pattern}"
    return str(found[-1])


def shrink(url: str) -> None:
    """Called in a tool's process before it: data sets are tiny ones at ``url``, networks thin, trainings forks."""
    DATA_SETS.update({name: tiny.data_set for name, tiny in published(url).items()})
    runs._start = _train_forked
    catalog.RESNET_UNITS["tiny_resnet"] = (1, 1, 7, 1)  # ResNet101 splits off six
    build.build_model = build.training.build_model = partial(_build_thin, build.build_model)


def _build_thin(real: Callable[..., Detector], cfg: ModelConfig, *others: object) -> Detector:
    kind = "tiny" if cfg.network in ("tiny", "vgg16") else "tiny_resnet"
    kind += "_det" * cfg.backbone.endswith("_det") + "_fpn" * cfg.has_pyramid
    return real(cfg.model_copy(update={"backbone": kind, "width": 4}), *others)


def stand_in_for_slurm(script: str, folder: Path) -> dict[str, str]:
    """Writes ``srun``, ``scontrol``, and a ``python`` that adds settings, into a folder; returns a job's variables.

    ``scontrol requeue`` leaves a file, ``requeued``.
    """
    python = shlex.join([sys.executable, "@", *settings(script), "--output-dir", "runs/slurm"]).replace("@", '"$@"')
    programs = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nSLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 exec "$@"',
        "scontrol": 'if [ "$1" = requeue ]; then touch requeued; else echo localhost; fi',
        "python": f"exec {python}",
    }
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = {"SLURM_JOB_ID": str((port - 20000) % 20000), "SLURM_JOB_NODELIST": "localhost", "SLURM_CPUS_PER_TASK": "1"}
    return job | {"PATH": f"{folder}:{os.environ['PATH']}"}


class _Forked:
    """A training of tools/reproduce.py, as a fork of it: a start takes no seconds. What a Popen of it would answer."""

    def __init__(self, run: runs.Trial) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        words = ["tools/train.py", *runs.arguments(run)]
        self._process = multiprocessing.get_context("fork").Process(target=self._train, args=(words, run.folder))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    @staticmethod
    def _train(words: list[str], folder: Path) -> None:
        with (folder / "train.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = words
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def _train_forked(run: runs.Trial, command: Sequence[str], slot: int, jobs: int) -> _Forked:
    return _Forked(run)


def published(url: str) -> dict[str, downloads.Published]:
    """Makes PASCAL VOC and COCO 2014 with the published names of archives and splits, of two or three images each."""
    return {"voc": _voc(url), "coco2014": _coco(url)}


def write_own_data(place: Path) -> None:
    """Writes what the README's example of data of one's own reads: ``own.yaml``, and two splits in COCO's layout."""
    (config,) = re.findall(r"^```yaml\n(base: own/.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.S | re.M)
    (place / "own.yaml").write_text(config)
    for split in ("train", "val"):
        for name, contents in _coco_split(split).items():
            path = place / "data/own" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)


def _coco_split(split: str) -> dict[str, bytes]:
    """The files of two images in COCO's layout, the annotations first."""
    images = [{"id": k, "file_name": f"{split}_{k}.jpg", "width": 64, "height": 48} for k in (1, 2)]
    objects = [
        {"id": k, "image_id": k, "category_id": k, "bbox": [5, 6, 35, 34], "area": 1190, "iscrowd": 0} for k in (1, 2)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    document = {"images": images, "annotations": objects, "categories": categories}
    pictures = {f"{split}/{one['file_name']}": picture(str(one["file_name"])) for one in images}
    return {f"annotations/instances_{split}.json": json.dumps(document).encode(), **pictures}


def _voc(url: str) -> downloads.Published:
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>40</xmax><ymax>40</ymax></bndbox>"
    xml = "<annotation><size><width>64</width><height>48</height></size>{}</annotation>"
    archives, makes, splits = {}, {}, []
    for number, archive in enumerate(DATA_SETS["voc"].archives):
        year, split = archive.makes.split("/")[0], Path(archive.makes).stem
        files = {f"VOCdevkit/{year}/ImageSets/Main/{split}.txt": f"{number}0\n{number}1\n".encode()}
        for stem, name in ((f"{number}0", "dog"), (f"{number}1", "cat")):
            files[f"VOCdevkit/{year}/Annotations/{stem}.xml"] = xml.format(
                f"<object><name>{name}</name>{box}</object>"
            ).encode()
            files[f"VOCdevkit/{year}/JPEGImages/{stem}.jpg"] = picture(stem)
        archives[archive.name], makes[archive.name] = downloads.tar(files), archive.makes
        splits.append(Split(f"{year}/{split}", 2, 2))
    described = downloads.describe(archives, makes, url, "VOCdevkit")
    return downloads.Published(DataSet("voc", described, tuple(splits), voc.load), archives)


def _coco(url: str) -> downloads.Published:
    names = [archive.name for archive in DATA_SETS["coco2014"].archives]
    annotations, archives = [], {}
    for split in ("train2014", "val2014"):
        written, *pictures = _coco_split(split).items()
        annotations.append(written)
        archives[f"{split}.zip"] = pictures
    archives[names[0]] = annotations
    # A zip has the time in it; every process makes the same bytes.
    packed = {
        name: downloads.zipped([(zipfile.ZipInfo(path), contents) for path, contents in archives[name]])
        for name in names
    }
    makes = {archive.name: archive.makes for archive in DATA_SETS["coco2014"].archives}
    splits = (Split("train2014", 2, 2), Split("val2014", 2, 2))
    return downloads.Published(
        DataSet("coco2014", downloads.describe(packed, makes, url, ""), splits, coco.load), packed
    )


def picture(name: str) -> bytes:
    """A photo of 64 x 48 pixels, which depends on its name."""
    pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()
