"""Every bad config ends at once in clear lines with exit code 2, and nothing is left behind."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import yaml
from damage import is_clear

from grcn import errors
from grcn.config import files as configfile
from grcn.config import yaml_nodes as yamlfile
from grcn.config.files import dump_config, leaves, load_config
from grcn.config.schema import Config
from grcn.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = "data: {format: shapes}\ntrain: {steps: 10}\n"
VOC = "data: {format: voc, root: r, train: [a], test: [b]}\ntrain: {steps: 10}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CANARY = "run: {seed: !!python/object/apply:os.system ['touch canary']}\n"

# What c.yaml holds (None: there is none), further arguments, and what the error must name.
FILES: dict[str, tuple[str | bytes | None, tuple[str, ...]]] = {
    "missing": (None, ("c.yaml", "no such file")),
    "empty": ("", ("missing 'data'", "missing 'train'")),
    "null": ("null", ("c.yaml:1:1",)),
    "a list": ("- 1\n", ("c.yaml:1:1",)),
    "binary": (bytes(range(256)), ("c.yaml", "UTF-8")),
    "zeros": (bytes(99), ("c.yaml:1:1", "U+0000")),
    "a photo": (b"\xff\xd8\xff\xe0" * 9, ("c.yaml", "UTF-8")),
    "a web page": ("<!DOCTYPE html><html><body>404</body></html>", ("c.yaml:1:1",)),
    "UTF-16": (MINIMAL.encode("utf-16"), ("c.yaml", "UTF-8")),
    "Latin-1": (MINIMAL.encode() + b"# caf\xe9", ("c.yaml", "UTF-8")),
    "a data set": ('{"images": [' + "{}, " * 99999 + "{}]}", ("c.yaml", "too large")),
    "tabs": (MINIMAL + "run:\n\tseed: 1\n", ("c.yaml:4:1", "spaces")),
    "a key twice": (MINIMAL + "train: {steps: 1}\n", ("c.yaml:3:1", "first at c.yaml:2:1")),
    "an alias": (MINIMAL + "model: {cls: &a {last_pool: none}, loc: *a}\n", ("c.yaml:3:36", "model.loc")),
    "a merge key": (MINIMAL + "run: &a {seed: 1}\neval: {<<: *a}\n", ("c.yaml:4:8",)),
    "an alias of itself": (MINIMAL + "run: &a [*a]\n", ("c.yaml:3:6",)),
    "an alias of nothing": (MINIMAL + "run: *a\n", ("c.yaml:3:6",)),
    "an alias bomb": (BOMB, ("c.yaml:2:4",)),
    "a Python tag": (MINIMAL + CANARY, ("c.yaml:3:13", "!!python/object/apply:os.system")),
    "a tag": (MINIMAL + "run: {seed: !!binary MQ==}\n", ("c.yaml:3:13", "run.seed")),
    "two documents": (MINIMAL + "---\nrun: {}\n", ("c.yaml:3:1", "single document")),
    "an open bracket": (MINIMAL + "run: {seed: 1\n", ("c.yaml:4:1",)),
    "deep in brackets": (MINIMAL + "run: " + "[" * 5000 + "\n", ("c.yaml:3:", "nested too deeply")),
    "deep in braces": (MINIMAL + "run: " + "{a: " * 5000 + "1" + "}" * 5000, ("c.yaml:3:", "nested too deeply")),
    "deep in dashes": (MINIMAL + "run:\n " + "- " * 5000 + "1\n", ("c.yaml:4:", "nested too deeply")),
    "deep in lines": (MINIMAL + "".join(" " * i + "a:\n" for i in range(300)), ("nested too deeply",)),
    "a control letter": (MINIMAL + "run: {device: '\x1b]0;x'}\n", ("c.yaml:3:16", "U+001B")),
    "an escaped control letter": (MINIMAL + 'run: {device: "\\e]0;x\\n"}\n', (r"'\x1b]0;x\n'",)),
    "a control letter in a key": (MINIMAL + '"\\e[31m\\n": 1\n', (r"unknown key '\x1b[31m\n'",)),
    "a long key": (MINIMAL + "k" * 999 + ": 1\n", ("c.yaml:3:1", "known: model")),
    "a long value": (MINIMAL + f"run: {{device: {'x' * 9999}}}\n", ("c.yaml:3:15", "run.device")),
    "very many keys": (MINIMAL + "".join(f"k{i}: 1\n" for i in range(9999)), ("k17", "more problems")),
    "a list as a key": (MINIMAL + "? [a]\n: 1\n", ("c.yaml:3:3",)),
    "keys that are no words": (MINIMAL + "1: 2\nnull: 3\n", ("c.yaml:3:1", "c.yaml:4:1")),
    "no section data": ("train: {steps: 1}\n", ("missing 'data'",)),
    "no format": ("data: {flip: 0}\ntrain: {steps: 1}\n", ("missing 'data.format'",)),
    "no root": ("data: {format: voc, train: [a], test: [b]}\ntrain: {steps: 1}\n", ("missing 'data.root'",)),
    "no steps": ("data: {format: shapes}\ntrain: {lr: 1}\n", ("missing 'train.steps'",)),
    "base is missing": ("base: none.yaml\n" + MINIMAL, ("c.yaml:1:7", "none.yaml")),
    "base is a folder": ("base: folder\n" + MINIMAL, ("c.yaml:1:7", "folder")),
    "base is a number": ("base: 3\n" + MINIMAL, ("c.yaml:1:7", "got 3")),
    "base is null": ("base:\n" + MINIMAL, ("c.yaml:1:6", "got null")),
    "base is no text": ("base: photo.yaml\n" + MINIMAL, ("photo.yaml", "UTF-8")),
    "base is the file": ("base: c.yaml\n" + MINIMAL, ("c.yaml -> c.yaml -> c.yaml",)),
    "bases in a circle": ("base: circle.yaml\n" + MINIMAL, ("c.yaml -> circle.yaml -> c.yaml",)),
    "base has a wrong key": ("base: wrong.yaml\n" + MINIMAL, ("wrong.yaml:2:3", "train.stepps")),
    "base has a control letter": ('base: "a\\e\\nb"\n' + MINIMAL, (r"a\x1b\nb",)),
}
OVERRIDES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "no equals": (["--", "train.lr"], ("train.lr", "key=value")),
    "no key": (["=1"], ("key=value",)),
    "an empty part": (["train..lr=1"], ("key=value",)),
    "a misspelt key": (["train.lrr=1"], ("did you mean 'train.lr'?",)),
    "a wrong type": (["train.lr=fast"], ("train.lr", "'fast'")),
    "out of range": (["train.momentum=1"], ("train.momentum", "got 1")),
    "a section": (["train=3"], ("train", "got 3")),
    "below a value": (["train.lr.x=3"], ("train.lr", "a mapping")),
    "base": (["base=x.yaml"], ("base",)),
    "broken YAML": (["run.seed=["], ("run.seed=[",)),
    "a tag": (["run.seed=!!python/object/apply:os.system ['touch canary']"], ("tags",)),
    "an alias": (["run.seed=*a"], ("run.seed=*a",)),
    "a deep value": (["run.seed=" + "[" * 5000], ("nested too deeply",)),
    "a deep key": (["run." + "a." * 5000 + "a=1"], ("nested too deeply",)),
    "a control letter": (["run.device=\x1b]0;x\x07"], (r"\x1b]0;x\x07",)),
    "a control letter as key": (["\x1b[31m\n=1"], (r"\x1b[31m\n",)),
    "bytes that are no text": (["run.device=\udcff"], (r"\udcff",)),
    "the other format's key": (["data.root=x"], ("only format voc, coco and yolo has it",)),
    "two at once": (["train.lr=fast", "run.sed=1"], ("train.lr", "run.sed")),
}
CONTRADICTIONS = [
    "model.image.max=500", "model.split=2", "model.loc.stride=8", "model.loc.last_pool=none",
    "model.rpn.bg_iou=0.8", "model.roi.bg_iou_low=0.6", "model.width=8", "model.head.kind=conv5", "train.accumulate=3",
    "train.lr_steps=[5, 5]", "eval.voc_iou=[0.505]", "eval.protocols=[voc, voc]", "run.device=gpu",
    "model.weights=vgg.pt", "model={context: {on: cls, heads: 3}}", "model={context: {dim: 10, heads: 4}}",
    "model={backbone: tiny, weights: IMAGENET1K_V1}", "model={backbone: resnet50, weights: IMAGENET1K_FEATURES}",
    "model={backbone: resnet50, split: conv5}", "model={backbone: resnet50, loc: {last_pool: none}}",
    "model={split: conv5, head: {tasks: ensemble}}", "data={format: voc, root: r, train: [a, a], test: [b]}",
]  # fmt: skip
WRONG_VALUES = ("word", "'1'", "1.5", "-1", "[[]]", "{a: 1}", "null", "true", ".nan", "-.inf", '"\\ud800"')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what the bases of the cases are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "circle.yaml").write_text("base: c.yaml\n")
    (tmp_path / "wrong.yaml").write_text("train:\n  stepps: 1\n")
    return tmp_path


def refused(folder: Path, contents: str | bytes | None, args: list[str], named: tuple[str, ...], **options: Any) -> str:
    """Runs the tool on a bad config; returns what is wrong with how it ended, or nothing."""
    path = folder / "c.yaml"
    path.unlink(missing_ok=True)
    if contents is not None:
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    before = sorted(os.listdir(folder))
    result = programs.call("tools/train.py", "--config", "c.yaml", *args, folder=folder, **options)
    left = sorted(set(os.listdir(folder)) - {"program.out", "program.err", *before})
    try:
        programs.assert_contract(result, 2, *named)
        assert not left, f"left behind: {left}"
    except AssertionError as error:
        return str(error)
    return ""


def test_bad_files_and_overrides_are_clear_lines(
    folder: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    cases = [(f"file: {name}", contents, [], named) for name, (contents, named) in FILES.items()]
    cases += [(f"override: {name}", MINIMAL, args, named) for name, (args, named) in OVERRIDES.items()]
    cases += [(f"override: {setting}", MINIMAL, [setting], ("command line",)) for setting in CONTRADICTIONS]
    cases = cases if faults > 1 else cases[::12]
    failures = {name: message for name, *case in cases if (message := refused(folder, *case))}
    assert not failures, "\n\n".join(f"{name}: {message}" for name, message in failures.items())
    record_property("faults", f"bad config: {len(cases)} of {len(cases)} cases are clear lines with exit 2")


def test_the_name_of_a_config_may_be_anything(folder: Path) -> None:
    for name in ("\x1b]0;\n.yaml", "\udcff.yaml", "x" * 300, "folder"):
        result = programs.call("tools/train.py", "--config", name, folder=folder)
        programs.assert_contract(result, 2)


@pytest.mark.parametrize("tool", ["train", "eval", "browse", "benchmark"])
def test_every_tool_says_it(folder: Path, tool: str) -> None:
    (folder / "c.yaml").write_text(MINIMAL)
    args = ["--config", "c.yaml", "train.stepps=1", *(["--detections", "d.json"] if tool == "eval" else [])]
    result = programs.call(f"tools/{tool}.py", *args, folder=folder)
    programs.assert_contract(result, 2, "unknown key 'train.stepps'; did you mean 'train.steps'?")


def test_any_message_is_one_line_that_ends_with_its_remedy() -> None:
    chance = random.Random(0)
    for length in (0, 1, 200, 287, 288, 9999):
        letters = "".join(chr(chance.choice((10, 13, 27, 97, 0x202E, 0xDC80, 0x1F600))) for _ in range(length))
        line = errors.one_line(f"c.yaml:1:2: {letters}; remove it")
        assert is_clear(line) and line.startswith("c.yaml:1:2: ") and line.endswith("; remove it")


def unescaped() -> None:
    errors.one_line = configfile.one_line = lambda text, limit=0: text


def unlimited() -> None:
    yamlfile.MAX_DEPTH = configfile.MAX_DEPTH = 10**9


def test_the_checks_see_a_missing_guard(folder: Path) -> None:
    """Controls: without escaping, a line is not printable; without the limit, a deep file is a traceback."""
    letters, deep = (MINIMAL, ["run.device=\x1b]0;x\x07"], ()), (MINIMAL, ["run." + "a." * 5000 + "a=1"], ())
    assert not refused(folder, *letters) and not refused(folder, *deep)
    assert refused(folder, *letters, patch=unescaped)
    assert "RecursionError" in refused(folder, *deep, patch=unlimited)
    yaml.load(CANARY, yaml.UnsafeLoader)
    assert (folder / "canary").exists(), "the tag does nothing anyway"


def complaint(text: str, *overrides: str) -> str | None:
    """Reads a config in this process; returns the error's text, or None where there is none."""
    Path("c.yaml").write_text(text, encoding="utf-8")
    try:
        load_config("c.yaml", overrides)
    except ConfigError as error:
        assert all(is_clear(line) for line in str(error).split("\n")), error
        return str(error)
    return None


def settings_of(text: str) -> dict[str, Any]:
    Path("c.yaml").write_text(text, encoding="utf-8")
    return leaves(load_config("c.yaml"))


def test_every_setting_refuses_what_it_cannot_be(
    folder: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    """What is accepted is of the right type; whatever else is refused, with the key in the message."""
    count, wrong = 0, []
    for base in (MINIMAL, VOC):
        for key in list(settings_of(base))[:: 1 if faults > 1 else 4]:
            refusals = 0
            for value in WRONG_VALUES:
                message = complaint(base, f"{key}={value}")
                refusals += message is not None
                if message is not None and key not in message:
                    wrong.append(f"{key}={value}: {message}")
            count += refusals
            # A text may be 'word' or '1', an optional number null or 1.5; nothing may be most of them.
            if refusals < 5:
                wrong.append(f"{key}: refused {refusals} of {len(WRONG_VALUES)}")
    assert not wrong, "\n".join(wrong)
    record_property("faults", f"wrong values: {count} of {count} are refused and name their key")


def misspelt(key: str) -> Iterator[str]:
    """Yields a dotted key with one letter of its last part lost, doubled, changed or swapped with the next."""
    section, _, name = key.rpartition(".")
    prefix = f"{section}." if section else ""
    for place in range(len(name)):
        yield prefix + name[:place] + "q" + name[place + 1 :]
        if len(name) > 2:
            yield prefix + name[:place] + name[place + 1 :]
        yield prefix + name[: place + 1] + name[place:]
        if place + 1 < len(name):
            yield prefix + name[:place] + name[place + 1] + name[place] + name[place + 2 :]


def test_every_misspelt_key_is_caught(
    folder: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    caught = suggested = 0
    settings = {base: settings_of(base) for base in (MINIMAL, VOC)}
    missed = []
    for base, known in settings.items():
        for key in known:
            spellings = sorted(set(misspelt(key)) - known.keys() - {"r", "o"})
            for wrong in spellings if faults > 1 else spellings[::9]:
                message = complaint(base, f"{wrong}=1")
                caught += message is not None and repr(wrong) in message
                if message is None:
                    missed.append(wrong)
                suggested += message is not None and f"'{key}'" in message
    assert not missed
    assert caught and suggested >= 0.95 * caught, (caught, suggested)
    record_property("faults", f"misspelt keys: {caught} of {caught} caught, {suggested} with the key that was meant")


def test_what_is_unusual_and_right_is_read(folder: Path) -> None:
    expected = dump_config(Config.model_validate({"data": {"format": "shapes"}, "train": {"steps": 10}}))
    for text in ("\ufeff" + MINIMAL, MINIMAL.replace("\n", "\r\n"), f"---\n{MINIMAL}...\n", f"# caf\xe9\n{MINIMAL}"):
        Path("c.yaml").write_bytes(text.encode())
        assert dump_config(load_config("c.yaml")) == expected
    overrides = ["train.lr=1e-4", "data.classes=[no, on, 1:30, '012']", "data.root=2020-01-01"]
    Path("c.yaml").write_text(VOC)
    found = leaves(load_config("c.yaml", overrides))
    assert found["train.lr"] == 1e-4 and found["data.root"] == "2020-01-01"
    assert found["data.classes"] == ("no", "on", "1:30", "012")
