"""Configs by name, from any folder."""

import os
from pathlib import Path

import pytest

from grcn.config import shipped
from grcn.config.files import load_config
from grcn.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_a_name_is_a_config_that_comes_with_grcn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs/voc/grcn_vgg16.yaml"
    assert load_config("voc/grcn_vgg16") == load_config("voc/grcn_vgg16.yaml") == load_config(file)
    assert load_config("voc/grcn_vgg16", ["train.lr=0.5"]).train.lr == 0.5


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    text = f"base: {ROOT}/configs/_base/shapes.yaml\nmodel: {{backbone: tiny, width: 4}}\n"
    Path("shapes/grcn_tiny.yaml").write_text(text)
    assert load_config("shapes/grcn_tiny").model.width == load_config("shapes/grcn_tiny.yaml").model.width == 4
    Path("shapes/grcn_tiny").write_text(text.replace("width: 4", "width: 8"))
    assert load_config("shapes/grcn_tiny").model.width == 8


@pytest.mark.parametrize("base", ["_base/shapes", "_base/shapes.yaml", "configs/_base/shapes.yaml"])
def test_a_file_begins_with_a_config_that_comes_with_grcn(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"base: {base}\nmodel: {{backbone: tiny, width: 4}}\n")
    assert load_config("mine.yaml").data == load_config("shapes/faster_rcnn_tiny").data
    Path("mine.yaml").write_text("base: ../../etc/passwd\n")
    with pytest.raises(ConfigError, match="base: no such file"):
        load_config("mine.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("shapes/grcn_tny", "did you mean shapes/grcn_tiny?"),
        ("configs/coco/grcn_resnet50.yaml", "did you mean coco/grcn_resnet50 or voc/grcn_resnet50?"),
        ("_base/shapes", "check the path, or see grcn configs"),
        ("nothing.yaml", "check the path, or see grcn configs"),
    ],
)
def test_what_is_neither_is_hinted_at(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such file in ") as caught:
        load_config(name)
    assert str(caught.value).endswith(hint)


def test_in_an_installed_package_the_configs_lie_inside(tmp_path, monkeypatch):
    package = tmp_path / "site-packages/grcn"
    (package / "config").mkdir(parents=True)
    (package / "configs/own").mkdir(parents=True)
    (package / "configs/own/mine.yaml").write_text("{}")
    monkeypatch.setattr(shipped, "__file__", str(package / "config/shipped.py"))
    assert shipped.names() == ["own/mine"]
    monkeypatch.chdir(package)
    assert shipped.find("own/mine") == os.path.join("configs", "own", "mine.yaml")
    assert shipped.find("shapes/grcn_tiny") == "shapes/grcn_tiny"
