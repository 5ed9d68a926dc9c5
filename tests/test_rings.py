"""Imports go one way, so that a package can be read, tested and used without those that build on it."""

import ast
from pathlib import Path

import grcn

ROOT = Path(grcn.__file__).parent
# A name may import those of earlier lines. Of one line only the pairs in BESIDE import each other, and no app another.
RINGS = (
    ("errors", "catalog"),
    ("boxes", "rng", "fileio", "progress"),
    ("models", "data", "evaluation", "engine", "config"),
    ("build",),
    ("torchvision_baseline", "vis"),
    ("run",),
    ("apps",),
    ("commands",),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, ring in enumerate(RINGS) for name in ring}
BESIDE = {("evaluation", "data")}  # scores are of annotations
HEAVY = {"matplotlib", "hotcoco", "pycocotools", "tensorboard", "submitit", "onnx", "onnxscript", "onnxruntime"}


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


def test_imports_point_inwards():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for name in imports(path):
            theirs = name.split(".")
            if theirs[0] not in RANK:  # a name of the package itself
                assert parts == ("__main__",) and not theirs[1:], f"{path}: imports grcn.{name}"
                continue
            inwards = RANK[theirs[0]] < RANK[parts[0]] or (parts[0], theirs[0]) in BESIDE
            same_room = theirs[0] == parts[0] and (parts[0] != "apps" or theirs[1] == parts[1])
            assert inwards or same_room, f"{path}: may not import grcn.{name}"


def test_the_top_level_reads_as_a_menu():
    names = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py*") if path.suffix != ".pyc"}
    assert len(names) <= 20 and {name.partition(".")[0] for name in names} == RANK.keys()


def test_heavy_and_optional_packages_are_imported_where_they_are_used():
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not HEAVY & {name.split(".")[0] for name in names}, f"{path}: import it inside the function"


def test_the_walk_sees_imports_of_every_form():
    assert {"build", "config.schema", "data.coco", "engine.evaluate"} <= imports(ROOT / "run/evaluate.py")
