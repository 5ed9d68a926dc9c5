"""Imports go one way, so that a part can be read, tested and used without what builds on it."""

import ast
from pathlib import Path

import grcn

ROOT = Path(grcn.__file__).parent
EVERYBODY = {"errors", "progress", "rng"}
ALLOWED = {
    "report": {"build", "config", "curves", "data", "draw", "engine", "evaluation"},
    "run": {
        *("browse", "build", "compat", "config", "configfile", "data", "dryrun", "engine", "evaluation", "initial"),
        *("machine", "models", "report", "runpage", "scoring", "twin"),
    },
    "scoring": {"build", "compat", "config", "data", "engine", "machine", "models", "report"},
    "initial": {"compat", "config", "configfile", "data", "engine", "models"},
    "machine": {"config", "engine"},
    "analysis": {
        *("build", "config", "compat", "charts", "data", "draw", "engine", "evaluation", "models", "run", "report"),
        *("configfile", "analysis", "scoring"),
    },
    "study": {"build", "compat", "config", "configfile", "charts", "data", "engine", "evaluation", "study", "twin"},
    "prepare": {"data", "engine"},
    "browse": {
        *(
            "build",
            "compat",
            "config",
            "data",
            "draw",
            "engine",
            "models",
            "picture_file",
            "samples",
            "sheet",
            "machine",
        ),
    },
    "picture_file": {"engine"},
    "sheet": {"curves", "draw", "predict", "samples"},
    "samples": {"boxes", "models"},
    "checkdata": {"anchor_fit", "build", "checkpage", "checkpictures", "config", "data"},
    "checkpictures": {"data.check", "data.table", "draw"},
    "checkpage": {"html"},
    "anchor_fit": {"data.table", "models"},
    "dryrun": {"benchmark", "build", "config", "data", "engine", "models"},
    "compat": {"config", "configfile", "data.table"},
    "catalogue": {"config", "configfile", "describe"},
    "twin": {"build", "config", "configchecks", "configerrors", "configfile", "modelconfig", "models"},
    "benchmark": {"twin", "benchmark", "boxes", "build", "config", "data", "describe", "evaluation", "models"},
    "describe": {"build", "config", "modelconfig", "models"},
    "build": {"config", "data", "modelconfig", "models"},
    "reference": {"configfile"},
    "configfile": {"config", "configchecks", "configerrors", "configtypes", "yamlfile"},
    "configerrors": {"config", "configtypes", "yamlfile"},
    "config": {"configtypes", "modelconfig"},
    "modelconfig": {"configchecks", "configtypes"},
    "configchecks": {"config", "modelconfig"},  # for the types only
    "configtypes": set(),
    "yamlfile": set(),
    "archive": set(),
    "boxes": set(),
    "models": {"archive", "boxes", "models"},
    "data": {"data"},
    "evaluation": {"data.faults", "data.table", "evaluation"},
    "draw": {"data.table"},
    "curves": set(),
    "html": set(),
    "runpage": {"curves", "engine", "html"},
    "charts": {"curves"},
    "engine": {"archive", "engine"},
    "errors": set(),
    "progress": set(),
    "rng": set(),
    "predict": {"build", "compat", "configfile", "data", "engine", "models"},
    "walkthrough": {"boxes", "models"},
    "walkthrough_picture": {"draw", "models", "predict", "walkthrough"},
    "__init__": {"build", "configfile", "models", "predict"},
}
HEAVY = {"matplotlib", "hotcoco", "pycocotools", "tensorboard", "submitit"}


def imports(path: Path) -> set[str]:
    """Returns the modules of grcn that a file imports, as dotted paths below the package."""
    package = ("grcn", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            inside = ROOT.joinpath(*module.split(".")[1:]).is_dir() and module.startswith("grcn")
            found |= {f"{module}.{alias.name}" for alias in node.names} if inside else {module}
    return {name.removeprefix("grcn.") for name in found if name.startswith("grcn.")}


def test_imports_follow_the_layers():
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(path):
            allowed = ALLOWED[part] | EVERYBODY
            assert name in allowed or name.split(".")[0] in allowed, f"{path}: may not import grcn.{name}"


def test_heavy_and_optional_packages_are_imported_where_they_are_used():
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not HEAVY & {name.split(".")[0] for name in names}, f"{path}: import it inside the function"


def test_the_walk_sees_imports_of_every_form():
    assert {"build", "config", "data.coco", "engine.checkpoint"} <= imports(ROOT / "scoring.py")
