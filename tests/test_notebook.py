"""docs/quickstart.ipynb: everything it names exists, and all of it runs, made short."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import documented
import pytest
from PIL import Image

from grcn.__main__ import COMMANDS
from grcn.config.files import load_config

FILE = Path(__file__).resolve().parents[1] / "docs/quickstart.ipynb"
NOTEBOOK: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
TEXT = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
SHORT = [*documented.SETTINGS["shapes"], "model.rpn.post_nms_test=20", "eval.pictures=2"]
PICTURES = {"losses", "detections", "predict", "maps"}


def parameters() -> dict[str, Any]:
    """The names that the cell of the parameters sets."""
    (cell,) = (cell for cell in NOTEBOOK["cells"] if cell["metadata"].get("tags") == ["parameters"])
    names: dict[str, Any] = {}
    exec(CODE[cell["id"]], names)
    return {name: names[name] for name in ("run", "steps", "settings")}


def commands() -> list[list[str]]:
    """The words of each command, with the parameters in it."""
    found = [line.partition(" 2>&1")[0] for code in CODE.values() for line in code.splitlines() if line[0:1] == "!"]
    values = parameters() | {"checkpoint": "W"}
    return [shlex.split(re.sub(r"\{(\w+)\}", lambda name: str(values[name[1]]), line[1:])) for line in found]


def test_it_is_a_notebook_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in NOTEBOOK["cells"]:
        fields = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            fields |= {"outputs", "execution_count"}
        assert set(cell) == fields and isinstance(cell["source"], list)
    assert set(CODE) >= PICTURES


def test_it_follows_the_schema_of_notebooks() -> None:
    pytest.importorskip("nbformat").validate(NOTEBOOK)


def test_its_commands_and_settings_exist() -> None:
    assert [words[:2] for words in commands()] == [["grcn", "train"], ["grcn", "eval"], ["grcn", "export"]]
    for _, name, *rest in commands():
        assert name in COMMANDS
        source = (FILE.parents[1] / f"grcn/commands/{name}.py").read_text(encoding="utf-8")
        for flag in (word for word in rest if word.startswith("--")):
            assert f'"{flag}"' in source, flag
        overrides = [word for word in rest if "=" in word]
        assert overrides or name == "export"
        load_config("shapes/grcn_tiny", overrides)
    for command in re.findall(r"`grcn ([a-z-]+)", TEXT):
        assert command in COMMANDS


def test_its_links_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links and all((FILE.parent / link).exists() for link in links)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    program = tmp_path / "bin/grcn"  # of the interpreter that runs the tests
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m grcn "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(FILE.parents[1]))
    notebook = nbformat.reads(FILE.read_text(encoding="utf-8"), 4)
    for cell in notebook.cells:
        if cell.metadata.get("tags") == ["parameters"]:
            cell.source = f"run, steps, settings = 'runs/short', 2, {shlex.join(SHORT)!r}"
    done = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in done.cells if cell.cell_type == "code"}
    for name in PICTURES:
        (shown,) = (output.data["image/png"] for output in outputs[name] if "data" in output)
        assert Image.open(io.BytesIO(base64.b64decode(shown))).width > 100
    for name in ("train", "evaluate"):
        printed = "".join(output.text for output in outputs[name])
        assert "grcn: error" not in printed and "coco_ap" in json.loads(printed.splitlines()[-1]), printed
