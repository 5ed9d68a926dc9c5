"""Config files: strict reading with places, one parent, overrides, dump and provenance."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grcn.config.files import (
    difference,
    dump_config,
    leaves,
    load_config,
    load_config_with_sources,
    parse_config,
    print_config,
    schema,
    set_in_vain,
)
from grcn.config.model_schema import _BACKBONES
from grcn.config.schema import Config
from grcn.errors import LONGEST_LINE, PREFIX, ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SHIPPED = sorted(CONFIGS.glob("[!_]*/*.yaml"))
MAX_LINE = LONGEST_LINE - len(PREFIX)
MINIMAL = "data: {format: shapes}\ntrain: {steps: 10}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes files into an empty current directory, so that messages hold their bare names."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "c.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write_file


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


# ---------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("+2", 2.0),
        ("010", 10.0),
        ("0x10", 16.0),
    ]
    + [("0o17", 15.0)],
)
def test_numbers_follow_yaml_1_2(write: Any, text: str, value: float) -> None:
    assert load_config(write(MINIMAL), [f"train.lr={text}"]).train.lr == value


@pytest.mark.parametrize("text", ["on", "yes", "No", "None", "12:30", "2020-01-01", "1_0", "'3'", "<<", "="])
def test_words_stay_words(write: Any, text: str) -> None:
    config = load_config(
        write("data: {format: voc, train: [a], test: [b]}\ntrain: {steps: 1}\n"),
        [f"data.root={text}"],
    )
    assert config.data.root == text.strip("'")  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["null", "~", "", "Null"])
def test_null(write: Any, text: str) -> None:
    assert load_config(write(MINIMAL), ["eval.limit=5", f"eval.limit={text}"]).eval.limit is None


@pytest.mark.parametrize(("text", "value"), [("true", True), ("FALSE", False)])
def test_booleans(write: Any, text: str, value: bool) -> None:
    assert load_config(write(MINIMAL), [f"train.bias_decay={text}"]).train.bias_decay is value


def test_the_key_on_is_a_key(write: Any) -> None:
    assert load_config(write(MINIMAL + "model: {context: {on: cls}}")).model.context.on == "cls"


# ---------------------------------------------------------------- problems

BAD = """\
model:
  backbone: vgg
  strde: 3
  anchors: {size: [1], ratios: ["1", -1]}
  channels: 4
  split: None
  rpn: 7
  context: {dim: 10, heads: 3, value: yes}
  roi: {box_weights: [1, 2, 3], nms: 1.5, fg_fraction: .inf}
data: {format: voc, root: 3, train: [], test: [a, a], level: flat}
train:
  lr: 0.1
  lr: -1
  batch: 1.5
  clip_grad_norm: none
run: {device: gpu, workers: -1}
paper: [{table: 9}]
lr: 3
qqq: 1
"""


def test_all_problems_are_reported_at_once_with_their_places(write: Any) -> None:
    assert problems(write(BAD), "train.lrr=1", "model.rpn.nms=fast", "steps", "run.amp=[", "base=x") == [
        f"c.yaml:2:13: model.backbone: expected {', '.join(map(repr, _BACKBONES))} or 'timm:NAME' (got 'vgg'); "
        "did you mean 'vgg16'?",
        "c.yaml:3:3: unknown key 'model.strde'; known: backbone, weights, freeze, width, norm, "
        "image, split, cls, loc, pyramid, timm, context, anchors, rpn, roi, head, cascade",
        "c.yaml:4:13: unknown key 'model.anchors.size'; did you mean 'model.anchors.sizes'?",
        "c.yaml:4:33: model.anchors.ratios[0]: expected a number (got '1'); write one, without quotes",
        "c.yaml:4:38: model.anchors.ratios[1]: expected a number above 0 (got -1); raise it",
        "c.yaml:5:3: unknown key 'model.channels'; did you mean 'model.pyramid.channels' or 'model.rpn.channels'?",
        "c.yaml:6:10: model.split: expected 'none', 'conv3', 'conv4', 'conv5', 'fpn', 'output' or a whole number of "
        "units (got 'None'); did you mean 'none'?",
        "c.yaml:8:39: model.context.value: expected true or false (got 'yes'); write one of them, without quotes",
        "c.yaml:9:9: missing 'model.roi.box_weights[3]'; add it",
        "c.yaml:9:38: model.roi.nms: expected at most 1 (got 1.5); lower it",
        "c.yaml:9:56: model.roi.fg_fraction: expected a finite number (got inf); write one",
        "c.yaml:10:27: data.root: expected text (got 3); write some, in quotes if it is a number",
        "c.yaml:10:37: data.train: expected at least 1 in the list (got []); add one",
        "c.yaml:10:55: unknown key 'data.level'; only format shapes has it",
        "c.yaml:11:1: missing 'train.steps'; add it",
        "c.yaml:13:3: train.lr: this key is repeated (first at c.yaml:12:3); remove one",
        "c.yaml:13:7: train.lr: expected a number above 0 (got -1); raise it",
        "c.yaml:14:10: train.batch: expected a whole number (got 1.5); write one, without quotes",
        "c.yaml:15:19: train.clip_grad_norm: expected a number (got 'none'); write one, without quotes",
        "c.yaml:16:29: run.workers: expected at least 0 (got -1); raise it",
        "c.yaml:17:9: missing 'paper[0].row'; add it",
        "c.yaml:17:17: paper[0].table: expected at most 5 (got 9); lower it",
        "c.yaml:18:1: unknown key 'lr'; did you mean 'train.lr'?",
        "c.yaml:19:1: unknown key 'qqq'; known: model, data, train, eval, run, paper",
        "command line: base=x: base is read from files only; pass another config instead",
        "command line: model.rpn.nms=fast: model.rpn.nms: expected a number (got 'fast'); write one, without quotes",
        "command line: run.amp=[: the [ is not closed, as when a shell splits at a space; put quotes around it: "
        "'run.amp=[ …]'",
        "command line: steps: not a setting; write key=value with a dotted key, as train.lr=0.01",
        "command line: train.lrr=1: unknown key 'train.lrr'; did you mean 'train.lr'?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "c.yaml:1:1: missing 'data'; add it"),
        ("data: {flip: 0}\ntrain: {steps: 1}", "c.yaml:1:1: missing 'data.format'; add it"),
        (
            "data: {format: cocoa}\ntrain: {steps: 1}",
            "c.yaml:1:16: data.format: expected 'shapes', 'voc', 'coco', 'yolo' (got 'cocoa'); did you mean 'coco'?",
        ),
        ("data: [1]\ntrain: {steps: 1}", "c.yaml:1:7: data: expected a mapping of keys (got [1]); write key: value"),
        ("- 1", "c.yaml:1:1: expected a mapping of keys (got [1]); write key: value"),
        ("hello", "c.yaml:1:1: expected a mapping of keys (got 'hello'); write key: value"),
        (MINIMAL + "model:", "c.yaml:3:7: model: expected a mapping of keys (got null); write key: value"),
        (MINIMAL + "? [a]\n: 1", "c.yaml:3:3: expected a word as the key; write key: value"),
        (
            MINIMAL + "run: {amp: !!python/name:os.system x}",
            "c.yaml:3:12: run.amp: tags are not read (got !!python/name:os.system); remove it",
        ),
        (
            MINIMAL + "run: {seed: !!int x}",
            "c.yaml:3:13: run.seed: tags are not read (got !!int); remove it",
        ),
        (
            MINIMAL + "model: {cls: &a {last_pool: none}, loc: *a}",
            "c.yaml:3:36: model.loc: aliases (*name) are not read; write the value out",
        ),
        (
            MINIMAL + "model: {split: conv5, loc: {last_pool: none}, width: 8}",
            "c.yaml:3:54: model.width: only the tiny backbones have one (got 8 with vgg16); remove it",
        ),
        (
            MINIMAL + "model:\n  cls: {last_pool: none}",
            "c.yaml:4:3: model.loc.last_pool: with split: none both tasks read one map, so it must "
            "equal cls.last_pool = none (got max); set split: conv5",
        ),
        (
            MINIMAL + "run: {seed: 1",
            "c.yaml:3:14: not valid YAML: expected ',' or '}', but got '<stream end>'; correct the syntax",
        ),
        (
            MINIMAL + "run:\n\tseed: 1",
            "c.yaml:4:1: not valid YAML: found character '\\t' that cannot start any token; indent with spaces",
        ),
        (
            MINIMAL + "---\nrun: {}",
            "c.yaml:3:1: not valid YAML: expected a single document in the stream, but found another document; "
            "correct the syntax",
        ),
        (MINIMAL + "a: \x07", "c.yaml:3:4: not valid YAML: unprintable letter U+0007; remove it"),
        ("[" * 5000, "c.yaml:1:21: nested too deeply for a config; flatten it"),
    ],
)
def test_single_problems(write: Any, text: str, problem: str) -> None:
    first = problems(write(text))[0]
    assert first == problem or (problem.endswith(": ") and first.startswith(problem))


def test_a_repeated_problem_of_a_list_names_each_entry(write: Any) -> None:
    assert problems(write(MINIMAL), "eval.voc_iou=[0.5, x, 2]") == [
        "command line: eval.voc_iou=[0.5, x, 2]: eval.voc_iou[1]: expected a number (got 'x'); write one, without "
        "quotes",
        "command line: eval.voc_iou=[0.5, x, 2]: eval.voc_iou[2]: expected at most 1 (got 2); lower it",
    ]


def test_what_a_shell_cut_at_a_space_is_to_be_quoted(write: Any) -> None:
    messages = problems(write(MINIMAL), *"data.test=[val, test]".split(), *"model.image={short: 64}".split())
    cut = "the {} is not closed, as when a shell splits at a space; put quotes around it: {}"
    assert f"command line: data.test=[val,: {cut.format('[', repr('data.test=[val, …]'))}" in messages
    assert f"command line: model.image={{short:: {cut.format('{', repr('model.image={short: …}'))}" in messages
    assert problems("c.yaml", "data.test=[val]]") == [
        "command line: data.test=[val]]: not valid YAML: expected '<document start>', but found ']'; correct the syntax"
    ]


def test_a_word_for_a_list_is_shown_as_one(write: Any) -> None:
    data = "data: {format: coco, root: r, train: [a], test: b c}\ntrain: {steps: 1}"
    assert problems(write(data), "data.train=training") == [
        "c.yaml:1:49: data.test: expected a list (got 'b c'); write [a, b]",
        "command line: data.train=training: data.train: expected a list (got 'training'); "
        "write 'data.train=[training]'",
    ]
    assert problems(write(data.replace("b c", "b"))) == ["c.yaml:1:49: data.test: expected a list (got 'b'); write [b]"]


@pytest.mark.parametrize("text", ["null", ""])
def test_no_split_is_not_advised_as_one(write: Any, text: str) -> None:
    data = "data: {format: coco, root: r, train: [a], test: [b]}\ntrain: {steps: 1}"
    assert problems(write(data), f"data.test={text}", f"model.anchors.sizes={text}") == [
        f"command line: data.test={text}: data.test: expected a list (got null); name one, such as [val]; "
        "grcn prepare-data split makes a test split of data without one",
        f"command line: model.anchors.sizes={text}: model.anchors.sizes: expected a list (got null); write [a, b]",
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("resnet18", "choose one"), ("vgg19", "choose one"), ("resnt101", "did you mean 'resnet101'?"),
     ("ResNet50", "did you mean 'resnet50'?"), ("vgg", "did you mean 'vgg16'?")],
)  # fmt: skip
def test_another_number_is_no_misspelling(write: Any, name: str, remedy: str) -> None:
    (line,) = problems(write(MINIMAL), f"model.backbone={name}")
    assert line.endswith(f"(got '{name}'); {remedy}")


def test_problems_are_single_lines_of_limited_length(write: Any) -> None:
    lines = problems(write(f'{MINIMAL}"a\\nb": 1\nrun: {{device: {"x" * 999}}}\n'), f"data.{'k' * 999}=1")
    assert len(lines) == 3 and all(len(line) <= MAX_LINE for line in lines)


def test_files_that_cannot_be_read(write: Any) -> None:
    assert problems("none.yaml") == [f"none.yaml: no such file in {Path.cwd()}; check the path, or see grcn configs"]
    assert problems("/none.yaml") == ["/none.yaml: no such file; check the path, or see grcn configs"]
    for name in ("grcn_resnet50", "grcn_resnet50.yaml", "configs/grcn_resnet50.yaml"):
        assert problems(name) == [
            f"{name}: no such file in {Path.cwd()}; did you mean coco/grcn_resnet50 or voc/grcn_resnet50?"
        ]
    os.mkdir("folder")
    assert problems("folder") == ["folder: cannot read this file (Is a directory); check the path"]
    Path("latin.yaml").write_bytes(b"# caf\xe9")
    assert problems("latin.yaml") == ["latin.yaml: not UTF-8 text (byte 5); save it as UTF-8"]


def test_a_byte_order_mark_is_no_problem(write: Any) -> None:
    assert load_config(write("\ufeff" + MINIMAL)).train.steps == 10


# ---------------------------------------------------------------- parents and overrides


def test_mappings_merge_and_anything_else_replaces(write: Any) -> None:
    write(
        "data: {format: shapes, seed: 3}\nmodel: {anchors: {sizes: [1, 2]}, rpn: {nms: 0.5}}",
        "a/top.yaml",
    )
    write(
        "base: ../top.yaml\ntrain: {steps: 5, lr_steps: [2, 3]}\nmodel: {rpn: {batch: 8}}",
        "a/b/mid.yaml",
    )
    leaf = write("base: a/b/mid.yaml\ntrain: {lr_steps: [4]}\nmodel: {anchors: {sizes: [7]}}")
    config, sources = load_config_with_sources(leaf, ["model.rpn={min_size: 2}", "train.steps=6", "train.steps=9"])
    assert config.data.seed == 3  # type: ignore[union-attr]
    assert config.model.anchors.sizes == (7.0,)
    assert (config.model.rpn.nms, config.model.rpn.batch, config.model.rpn.min_size) == (0.5, 8, 2)
    assert (config.train.steps, config.train.lr_steps) == (9, (4,))
    assert {key: source for key, source in sources.items() if source != "default"} == {
        "data.format": "a/top.yaml:1",
        "data.seed": "a/top.yaml:1",
        "model.anchors.sizes": "c.yaml:3",
        "model.rpn.nms": "a/top.yaml:2",
        "model.rpn.batch": "a/b/mid.yaml:3",
        "model.rpn.min_size": "command line",
        "train.steps": "command line",
        "train.lr_steps": "c.yaml:2",
    }
    assert sources.keys() == leaves(config).keys()


def test_a_problem_is_placed_in_the_file_that_has_it(write: Any) -> None:
    write("train: {steps: x, lr: x}\ndata: {format: shapes, levl: 1}", "base.yaml")
    assert problems(write("base: base.yaml\ntrain:\n  steps: y"), "train.lr=z") == [
        "base.yaml:2:24: unknown key 'data.levl'; did you mean 'data.level'?",
        "c.yaml:3:10: train.steps: expected a whole number (got 'y'); write one, without quotes",
        "command line: train.lr=z: train.lr: expected a number (got 'z'); write one, without quotes",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.root=/data/set #1", None),
        ("data.root=#1", None),
        ("data.root='/data/set #1'", "/data/set #1"),
        ("data.root=/data/set#1", "/data/set#1"),
        ("data.root=/data/my set  ", "/data/my set"),
    ],
)
def test_an_override_has_no_comment(write: Any, override: str, expected: str | None) -> None:
    path = write("data: {format: voc, root: there, train: [a], test: [b]}\ntrain: {steps: 10}")
    if expected is None:
        (problem,) = problems(path, override)
        assert problem.endswith("' would be a comment; put quotes around the value too: 'data.root=\"…\"'")
    else:
        assert load_config(path, [override]).data.root == expected


def test_a_missing_key_is_placed_in_the_file_not_the_override(write: Any) -> None:
    assert problems(write("\ntrain: {lr: 1}\ndata: {format: shapes}"), "train.lr=2") == [
        "c.yaml:2:1: missing 'train.steps'; add it"
    ]


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("3", "c.yaml:1:7: base: expected the name of a file (got 3); write base: FILE"),
        ("[a, b]", "c.yaml:1:7: base: expected the name of a file (got ['a', 'b']); write base: FILE"),
        ("no.yaml", "c.yaml:1:7: base: no such file (got no.yaml); name it relative to this file"),
        (
            "c.yaml",
            "c.yaml:1:7: base: too many levels (got c.yaml -> c.yaml -> c.yaml -> c.yaml); join two files",
        ),
    ],
)
def test_wrong_bases(write: Any, base: str, problem: str) -> None:
    assert problems(write(f"base: {base}\n{MINIMAL}")) == [problem]


def test_an_override_replaces_lists_and_follows_new_sections(write: Any) -> None:
    path = write("data: {format: voc, root: r, train: [a], test: [t]}\ntrain: {steps: 1}")
    config = load_config(path, ["data.train=[b, c]", "model.weights=caffe:a b.npz", "paper=[{table: 1, row: x}]"])
    assert config.data.train == ("b", "c")  # type: ignore[union-attr]
    assert config.model.weights == "caffe:a b.npz"
    assert config.paper[0].row == "x"
    assert problems(path, "data.train.x=1") == [
        "command line: data.train.x=1: data.train: expected a list (got a mapping); write [a, b]"
    ]


# ---------------------------------------------------------------- dump, print, difference


def test_the_printed_config_names_every_source_and_is_a_config(write: Any) -> None:
    path = write(MINIMAL + "run: {device: 'cuda:0'}\n")
    printed = print_config(path, ["model.image.short=300"])
    lines = printed.splitlines()
    assert "    short: 300                                # command line" in lines
    assert "    max: 1000                                 # default" in lines
    assert '  device: "cuda:0"                            # c.yaml:3' in lines
    assert load_config(write(printed, "again.yaml")) == load_config(path, ["model.image.short=300"])


def test_settings_without_effect_are_reported_for_the_file_and_the_command_line_only(write: Any) -> None:
    write("train: {gamma: 0.5}\nmodel: {head: {dropout: 0.25}}", "base.yaml")
    text = MINIMAL.replace("{steps: 10}", "{steps: 10, schedule: cosine, lr_steps: [5]}")
    path = write("base: base.yaml\n" + text)

    def without_effect(path: str, *overrides: str) -> list[str]:
        return set_in_vain(*load_config_with_sources(path, overrides), path)

    assert without_effect(path) == ["train.lr_steps (train.schedule is cosine)"]
    assert without_effect(path, "model.head.kind=conv", "model.head.dropout=0.5", "train.schedule=step") == [
        "model.head.dropout (model.head.kind is conv)"
    ]
    # The config of a run has every setting.
    dumped = write(dump_config(load_config(path)), "config.yaml")
    assert without_effect(dumped) == [] and without_effect(dumped, "train.gamma=0.5") == [
        "train.gamma (train.schedule is cosine)"
    ]
    printed = print_config(path, ["model.head.kind=conv"])
    assert (
        "    dropout: 0.25                             # base.yaml:2; without effect: model.head.kind is conv\n"
        in printed
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_shipped_config_sets_anything_in_vain(path: Path) -> None:
    assert set_in_vain(*load_config_with_sources(path), path) == []


def test_difference_names_what_changed(write: Any) -> None:
    path = write(MINIMAL)
    before = load_config(path)
    assert difference(before, load_config(path)) == {}
    after = load_config(path, ["train.lr=0.1", "eval.voc_iou=[0.5]", "model.weights=IMAGENET1K_V1"])
    assert list(difference(before, after).values()) == [
        "model.weights: null -> IMAGENET1K_V1",
        "train.lr: 0.001 -> 0.1",
        "eval.voc_iou: [0.5, 0.7, 0.75] -> [0.5]",
    ]
    voc = load_config(write("data: {format: voc, root: r, train: [a], test: [b]}\ntrain: {steps: 10}"))
    assert difference(before, voc)["data.level"] == "data.level: flat -> absent"
    assert difference(before, voc)["data.root"] == "data.root: absent -> r"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_survives_dump_and_reload(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped) == config


def lies_below(split: str) -> bool:
    """Whether a split does not lead out of the folder of the data, which is refused."""
    return not any(part.startswith("/") or ".." in part.split("/") for part in split.split(":"))


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
words = st.sampled_from(["on", "no", "null", "~", "1e3", "0x1", "true", "a: b", "- a", "#", "'", '"', "a,b", "x\ty"])
unit = st.floats(0, 1)


@settings(deadline=None, max_examples=100)
@given(
    root=names | words,
    splits=st.lists((names | words).filter(lies_below), min_size=1, max_size=3, unique=True),
    classes=st.none() | st.lists(names | words, min_size=1, max_size=3, unique=True),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    sizes=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=3),
    flip=unit,
    seed=st.integers(0, 2**63),
    drop_empty=st.booleans(),
    rows=st.lists(st.fixed_dictionaries({"table": st.integers(1, 5), "row": names | words}), max_size=2),
)
def test_any_config_survives_dump_and_reload(
    root: str,
    splits: list[str],
    classes: list[str] | None,
    lr: float,
    sizes: list[float],
    flip: float,
    seed: int,
    drop_empty: bool,
    rows: list[dict[str, Any]],
) -> None:
    document = {
        "model": {"anchors": {"sizes": sizes}},
        "data": {"format": "voc", "root": root, "train": splits, "test": splits, "classes": classes}
        | {"flip": flip, "drop_empty": drop_empty},
        "train": {"steps": 1, "lr": lr},
        "run": {"seed": seed},
        "paper": rows,
    }
    config = Config.model_validate(document)
    assert parse_config(dump_config(config), "dump") == config


def test_a_text_is_parsed_like_a_file_but_has_no_parent() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("base: c.yaml\ntrain: {steps: x}\ndata: {format: shapes}", "state")
    assert str(caught.value).splitlines() == [
        "state:1:1: unknown key 'base'; known: model, data, train, eval, run, paper",
        "state:2:16: train.steps: expected a whole number (got 'x'); write one, without quotes",
    ]
    with pytest.raises(ConfigError, match="^state:1:2: not valid YAML"):
        parse_config("[", "state")


GRCN = dump_config(load_config(CONFIGS / "shapes" / "grcn_tiny.yaml"))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(GRCN) - 1), st.integers(0, 8), st.text(max_size=3))
def test_a_damaged_config_is_read_or_refused_in_lines(start: int, length: int, text: str) -> None:
    damaged = GRCN[:start] + text + GRCN[start + length :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
        try:
            load_config(path)
        except ConfigError as error:
            lines = str(error).split("\n")
            assert all(line.startswith(str(path)) and len(line) <= MAX_LINE for line in lines)


# ---------------------------------------------------------------- what is shipped


def test_the_schema_is_current() -> None:
    # Compared as values, since versions of pydantic write 0 or 0.0.
    shipped = json.loads((CONFIGS / "schema.json").read_text())
    assert shipped == json.loads(schema()), "run: make generated"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == comment and 3 <= len(lines) - len(comment) <= 10
    text = " ".join(line.lstrip("# ") for line in comment)
    assert f"grcn train --config {path.parent.name}/{path.stem}" in text
    model = load_config(path).model
    assert re.fullmatch(
        rf"[a-z0-9_]+_{model.backbone}(_(align|pool|fc|conv|conv5|align14|stride32|v2|26epochs))?", path.stem
    )
    tables = yaml.safe_load((CONFIGS / "paper_tables.yaml").read_text())
    paper = load_config(path).paper
    rows = [{row["id"]: row for row in tables[f"table{p.table}"]["rows"]}[p.row] for p in paper]
    assert rows or re.search(r"Expected: (its |the )?(paper|authors|mmdetection|nobody)", text)
    assert all(str(p.table) in re.findall(r"\d", text) for p in paper)
    if rows and path.parent.name != "shapes":
        stated = dict(re.findall(r"\b(AP\d*) (\d+\.\d)", text))
        assert stated and all(float(value) == rows[-1][name] for name, value in stated.items())


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_modern_bases_change_three_things(name: str, write: Any) -> None:
    rest = "model: {split: conv5}\n"
    plain = load_config(write(f"base: {CONFIGS}/_base/{name}.yaml\n{rest}"))
    modern = load_config(write(f"base: {CONFIGS}/_base/{name}_modern.yaml\n{rest}"))
    assert list(difference(plain, modern)) == ["model.rpn.min_size", "model.roi.op"]
    assert modern.model.weights == "IMAGENET1K_V1"


def test_the_papers_class_values_average_to_its_means() -> None:
    tables = yaml.safe_load((CONFIGS / "paper_tables.yaml").read_text())
    for row in tables["table4"]["rows"]:
        values = [row["per_class"][name] for name in tables["table4"]["classes"]]
        assert len(values) == 20 and abs(sum(values) / 20 - row["AP70"]) < 0.05
