"""The wheel and the sdist as a user without a clone gets them: in a new venv, from an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "train.steps=10", "train.warmup=0", "train.batch=2", "data.train_images=8", "data.test_images=4", "model.width=8",
    "run.threads=1", "run.workers=0", "run.device=cpu", "eval.pictures=0",
]  # fmt: skip

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path) -> str:
    """Runs a program in ``folder``, where nothing leads to the clone; returns its stdout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, folder=ROOT)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a venv with the wheel, whose dependencies are those of the interpreter that runs the tests."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "-q", "--no-deps", "--no-index", built[0], folder=folder)
    (own,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (own / "others.pth").write_text("\n".join(others))
    where = run(python, "-c", "import grcn; print(grcn.__file__)", folder=folder)
    assert where.startswith(str(own))
    return folder / "bin"


def test_the_wheel_holds_the_program_and_the_configs(built):
    names = zipfile.ZipFile(built[0]).namelist()
    program = [str(path.relative_to(ROOT)) for kind in ("py", "html") for path in ROOT.glob(f"grcn/**/*.{kind}")]
    assert set(program) <= set(names)
    assert {f"grcn/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.*")} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "tools")) or "__pycache__" in name]


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, folder=source)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.read_bytes() == built[0].read_bytes()
    assert (source / "Makefile").exists() and (source / "tests/test_package.py").exists()


def test_an_installed_package_trains_evaluates_and_predicts(installed, tmp_path):
    grcn = installed / "grcn"
    run(grcn, "train", "--config", "shapes/grcn_tiny", *SHORT, folder=tmp_path)
    (checkpoint,) = tmp_path.glob("runs/shapes/grcn_tiny/seed0/checkpoints/step_00000010-*.pt")
    config = tmp_path / "runs/shapes/grcn_tiny/seed0/config.yaml"
    assert '"coco_ap"' in run(grcn, "eval", "--config", config, "--checkpoint", checkpoint, folder=tmp_path)
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "photo.jpg")
    run(grcn, "predict", "--checkpoint", checkpoint, "photo.jpg", folder=tmp_path)
    assert (tmp_path / "predictions/photo.jpg").exists()
    assert "shapes/grcn_tiny" in run(installed / "python", "-m", "grcn", "configs", "shapes", folder=tmp_path)


def test_the_library_example_of_the_readme_runs(installed, tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    run(installed / "python", "-c", example + "\nassert len(losses) == 4 and len(detections) == 1", folder=tmp_path)
