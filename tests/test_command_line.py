"""``grcn NAME`` and ``python -m grcn NAME``: the same commands as tools/NAME.py."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from grcn import __version__
from grcn.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:'grcn.__main__' found in sys.modules")


def grcn(monkeypatch, capfd, *words, code=0):
    """Runs a command in this process; returns its stdout, or its stderr if it is to fail."""
    monkeypatch.setattr(sys, "argv", ["grcn", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("grcn", run_name="__main__")
    assert stopped.value.code == code
    return getattr(capfd.readouterr(), "err" if code else "out")


def test_every_command_has_a_module_a_launcher_and_a_line_of_help(monkeypatch, capfd):
    shown = grcn(monkeypatch, capfd, "--help")
    assert shown == grcn(monkeypatch, capfd)
    modules = {path.stem for path in ROOT.glob("grcn/commands/[!_]*.py")}
    launchers = {path.stem for path in ROOT.glob("tools/*.py") if not path.stem.startswith("generate")}
    assert modules == launchers == {name.replace("-", "_") for name in COMMANDS}
    assert re.findall(r"^  (\S+)  +\w", shown, re.M) == list(COMMANDS)
    assert grcn(monkeypatch, capfd, "--version") == f"grcn {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_it(monkeypatch, capfd, name):
    shown = grcn(monkeypatch, capfd, name, "--help")
    assert shown.startswith(f"usage: grcn {name} ") and f"grcn {name}" in shown.partition("\n\n")[2]


def test_a_command_that_does_not_exist_is_one_line(monkeypatch, capfd):
    stderr = grcn(monkeypatch, capfd, "trian", code=2)
    assert stderr == "grcn: error: no such command (got 'trian'); did you mean train?\n"
    assert "see grcn --help" in grcn(monkeypatch, capfd, "xyz", code=2)


def test_help_and_the_list_of_configs_import_neither_torch_nor_the_schema():
    program = "import sys, runpy\nsys.argv[1:] = {}\ntry:\n    runpy.run_module('grcn', run_name='__main__')\n"
    program += "except SystemExit:\n    print('torch' in sys.modules, 'pydantic' in sys.modules)"
    for words in (["--help"], ["configs", "shapes"]):
        done = subprocess.run(
            [sys.executable, "-c", program.format(words)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False False"


def test_the_configs_are_listed_by_words_and_as_json(monkeypatch, capfd):
    lines = grcn(monkeypatch, capfd, "configs", "coco", "g-rcn", "resnet50").splitlines()
    assert lines[0].split()[:2] == ["config", "parameters"]
    assert any(line.startswith("coco/grcn_resnet50 ") and "5: ResNet50(G-RCN)" in line for line in lines)
    assert all("resnet50" in line.lower() for line in lines[1:])
    assert grcn(monkeypatch, capfd, "configs", "--json").count('"name"') == len(list(ROOT.glob("configs/[!_]*/*.yaml")))
    assert "no config has 'xyz'" in grcn(monkeypatch, capfd, "configs", "xyz", code=2)


def test_a_config_is_copied_with_what_it_begins_with(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    printed = grcn(monkeypatch, capfd, "configs", "copy", "shapes/grcn_tiny", "mine").splitlines()
    assert printed[0] == "mine/shapes/grcn_tiny.yaml" and all(Path(name).is_file() for name in printed)
    theirs = grcn(monkeypatch, capfd, "train", "--config", "shapes/grcn_tiny", "--print-config")
    ours = grcn(monkeypatch, capfd, "train", "--config", "mine/shapes/grcn_tiny.yaml", "--print-config")
    assert [line.partition("  #")[0] for line in ours.splitlines()] == [
        line.partition("  #")[0] for line in theirs.splitlines()
    ]
    assert grcn(monkeypatch, capfd, "configs", "copy", "shapes/grcn_tiny.yaml", "mine").splitlines() == printed
    Path("mine/_base/tiny.yaml").write_text("model: {width: 4}\n")
    stderr = grcn(monkeypatch, capfd, "configs", "copy", "shapes/grcn_tiny", "mine", code=2)
    assert "mine/_base/tiny.yaml: exists and differs" in stderr
    assert Path("mine/_base/tiny.yaml").read_text() == "model: {width: 4}\n"
    stderr = grcn(monkeypatch, capfd, "configs", "copy", "shapes/grcn_tny", "mine", code=2)
    assert "did you mean shapes/grcn_tiny" in stderr
