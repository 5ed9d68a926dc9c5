"""README and docs are correct: their commands parse, their files exist, the README's code runs."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import documented
import pytest
import yaml
from PIL import Image

from grcn import __version__
from grcn.__main__ import COMMANDS
from grcn.build import build_model
from grcn.config.files import dump_config, load_config
from grcn.config.model_schema import ModelConfig
from grcn.engine import checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA, EVALUATION = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("data", "evaluation"))


def test_commands_name_existing_tools_and_settings():
    """With their own settings; ``test_commands.py`` runs them with others."""
    ours = [line for line in documented.commands() if not line.startswith(tuple(documented.FOREIGN))]
    found = [shlex.split(line) for line in ours if re.match(r"(python|torchrun .*) tools/", line)]
    assert len(found) >= 20
    for words in found:
        (tool,) = (word for word in words if word.startswith("tools/"))
        source = (ROOT / "grcn/commands" / Path(tool).name).read_text()
        rest = words[words.index(tool) + 1 :]
        for flag in (word for word in rest if word.startswith("--")):
            assert f'"{flag}"' in source, f"{tool} has no {flag}"
        overrides = [word for word in rest if "=" in word and not word.startswith("--")]
        for config in (word for word in rest if word.startswith(("configs/", "shapes/", "voc/", "coco/", "own/"))):
            load_config(ROOT / config if config.startswith("configs/") else config, overrides)


def test_links_and_make_targets_exist():
    for page in documented.PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert not [line for line in lines if len(line) > 110 and not line.startswith("|")]


@pytest.mark.parametrize("page", documented.PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_paragraph_is_over_eight_lines(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*] |\s*\d+\. )", text):
        lines = [line for line in paragraph.splitlines() if line.strip() and not line.startswith(("|", "#", "!["))]
        assert sum(-(-len(line) // 110) for line in lines) <= 8, paragraph


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert project["version"] == __version__ == citation["version"] == newest


def test_the_entry_page_lists_every_page_and_command():
    page = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]:
        assert path.name == "README.md" or f"]({path.name})" in page, path.name
    for name in COMMANDS:
        assert f"`grcn {name}`" in page, name


def test_the_files_of_the_reading_order_exist():
    text = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    order = text[text.index("## The method") : text.index("## From an image file")]
    names = re.findall(r"`([\w/]+\.py)`", order)
    assert len(names) >= 10
    for name in names:
        assert (ROOT / "grcn" / name).exists() or (ROOT / "grcn/models" / name).exists() or (ROOT / name).exists(), name


def test_the_config_for_own_data_loads(tmp_path):
    text, coco = re.findall(r"```yaml\n(base: .*?)```", DATA, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    cfg = load_config(tmp_path / "mine.yaml")
    assert cfg.model.context.on == "cls" and cfg.data.root == "data/mine" and cfg.train.steps == 20000
    (tmp_path / "coco.yaml").write_text(coco)
    cfg = load_config(tmp_path / "coco.yaml")
    data = cfg.data
    assert (cfg.model.split, cfg.model.loc.last_pool, cfg.model.context.on) == ("conv5", "none", "cls")
    assert (data.format, data.root, data.train, data.test) == ("coco", "data/mine", ("train",), ("val",))


def test_its_variants_on_a_resnet_and_from_scratch_load(tmp_path):
    """The sentence below the config gives other first lines for it."""
    text, _ = re.findall(r"```yaml\n(base: .*?)```", DATA, re.DOTALL)
    (model,) = re.findall(r"`(model: \{backbone: resnet50.*?\}\})`", DATA)
    rest = text.splitlines()[2:]
    (base,) = re.findall(r"`base: (_base/[a-z_]+)`", DATA)
    (tmp_path / "resnet.yaml").write_text("\n".join([f"base: {base}", model, *rest]))
    cfg = load_config(tmp_path / "resnet.yaml")
    assert (cfg.model.backbone, cfg.model.head.kind, cfg.model.roi.size) == ("resnet50", "conv5", 14)
    assert cfg.train.bias_lr_factor == 1
    (rows,) = re.findall(r"`configs/own/` has five rows of it \((.*?)\)", DATA, re.DOTALL)
    assert len(names := re.findall(r"`(\w+)`", rows)) == 5
    for name in names:
        cfg = load_config(ROOT / f"configs/own/{name}.yaml", ["data.root=mine", "data.train=[a]", "data.test=[b]"])
        assert (cfg.model.backbone, cfg.model.weights, cfg.model.norm) == ("tiny", None, "group")
        assert cfg.data.format == "voc"


DOCS = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "configs/README.md", ROOT / "RESULTS.md"]


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda path: path.name)
def test_headings_that_pages_link_to_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        place = page if not target else page.parent / target
        assert place.suffix != ".md" or anchor in headings(place), f"{target}#{anchor}"


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_what_other_pages_name_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    shipped = {path.stem for path in (ROOT / "configs").glob("*/*.yaml")}
    for name in re.findall(r"`((?:faster_rcnn|grcn|detect|nopool)_\w+)`", text):
        assert name in shipped, name
    for key in re.findall(r"`model\.(?!pt2|onnx|safetensors)([a-z_.]+)", text):  # which are files
        section = ModelConfig
        for step in key.split("."):
            assert step in section.model_fields, key
            section = section.model_fields[step].annotation


def test_the_prediction_example_runs(monkeypatch, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", EVALUATION, re.DOTALL)
    cfg = load_config(ROOT / "configs/shapes/grcn_tiny.yaml", ["model.width=8", "model.head.dim=16"])
    state = {"format": checkpoint.FORMAT, "step": 0, "optimizer": {}, "losses": []}
    state |= {"model": build_model(cfg.model, 9).state_dict(), "classes": list("abcdefgh")}
    checkpoint.save(tmp_path, state | {"config": dump_config(cfg), "data_fingerprint": ""}, keep=1)
    Image.new("RGB", (60, 50)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (name,) = re.findall(r'"(runs/.*?pt)"', code)
    names = {}
    exec(compile(code.replace(name, str(next(tmp_path.glob("*.pt")))), "README.md", "exec"), names)
    assert names["found"].boxes.shape[1] == 4


def test_the_library_example_runs(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    assert "voc/grcn_vgg16" in code
    small = code.replace("voc/grcn_vgg16", "shapes/grcn_tiny")  # seconds instead of a minute
    names = {}
    exec(compile(small, "README.md", "exec"), names)
    assert set(names["losses"]) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert set(names["detections"][0]) == {"boxes", "labels", "scores"}
    assert names["cfg"].model.loc.last_pool == "none"


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """A script that lies beside a clone, whose folder is called grcn too."""
    if "PYTHONPATH" in os.environ:
        pytest.skip("found by PYTHONPATH, installed or not")
    (tmp_path / "grcn").mkdir()
    code = "import grcn, sys; sys.exit(not callable(grcn.load))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
