"""Malicious files are refused before they are unpacked, and nothing in them is run."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from foreign import BIG, bomb, named, read_weights, refusal, saved
from waiting import HANG

from grcn import fileio
from grcn.engine import checkpoint
from grcn.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- bombs


def measured(read: Callable[[Any], object], given: Any, report: Path, patch: Callable[[], None] | None) -> None:
    """Is one process: loads a file and reports by how many megabytes memory grew meanwhile."""
    if patch is not None:
        patch()
    status = Path("/proc/self/status")

    def memory(key: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) >> 10

    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
    before = memory("VmRSS")
    with contextlib.suppress(CheckpointError):
        read(given)
    report.write_text(str(memory("VmHWM") - before))


def growth(read: Callable[[Any], object], given: Any, report: Path, patch: Callable[[], None] | None = None) -> int:
    process = programs.CONTEXT.Process(target=measured, args=(read, given, report, patch))
    process.start()
    process.join(HANG)
    assert process.exitcode == 0
    return int(report.read_text())


def without_the_archive_check() -> None:
    checkpoint.check_archive = fileio.check_archive = lambda *args, **options: None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it")
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = named(tmp_path, bomb())
    assert path.stat().st_size < 2**20
    arrays = tmp_path / "bomb.npz"
    np.savez_compressed(arrays, a=np.zeros(BIG, np.uint8))
    for read, given in ((checkpoint.load, path), (read_weights, f"caffe:{path}"), (read_weights, f"caffe:{arrays}")):
        assert growth(read, given, tmp_path / "report") < 50
        assert growth(read, given, tmp_path / "report", without_the_archive_check) > 100, "a control"


# ---------------------------------------------------------------- pickles


class Attack:
    """Runs something where it is unpickled."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Setter:
    """Runs something where its state is set, by the opcode BUILD."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack


def attacks(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}"
    system = Attack(os.system, command)
    legacy = {"_use_new_zipfile_serialization": False}
    inner = saved(system, **legacy)
    return {
        "os.system": saved({"model": system}),
        "eval": saved({"model": Attack(eval, f"__import__('os').system({command!r})")}),
        "exec": saved(Attack(exec, f"import os; os.system({command!r})")),
        "nested": saved({"model": {"weight": [{"deep": (system,)}]}}),
        "BUILD": saved({"model": Setter(system)}),
        "REDUCE of an inner file": saved(Attack(torch.storage._load_from_bytes, inner)),
        "pickle in a pickle": saved(Attack(pickle.loads, pickle.dumps(system))),
        "import": saved(Attack(getattr, Attack(__import__, "os"), "system")),
        "old format": saved({"model": system}, **legacy),
        "plain pickle": pickle.dumps({"model": system}),
    }


def test_nothing_in_a_file_is_run(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    canary = tmp_path / "canary"
    cases = attacks(canary)
    for name, contents in cases.items():
        path = named(tmp_path, contents)
        refusal(lambda path=path: checkpoint.load(path))
        path = path.rename(tmp_path / "model.pt")
        refusal(lambda path=path: checkpoint.load(path))
        refusal(lambda path=path: read_weights(f"torchvision:{path}"))
        path = path.rename(tmp_path / "model.npz")
        refusal(lambda path=path: read_weights(f"caffe:{path}"))
        assert not canary.exists(), name
    np.savez(tmp_path / "objects.npz", a=np.array([Attack(os.system, f"touch {canary}")], object))
    refusal(lambda: read_weights(f"caffe:{tmp_path / 'objects.npz'}"))
    assert not canary.exists()
    count = 4 * len(cases) + 1
    record_property("faults", f"attacks in checkpoints and weights: {count} of {count} refused, none ran")


def test_the_attacks_work_where_nothing_stops_them(tmp_path: Path) -> None:
    """A control, with the loader that the lint below forbids."""
    canary = tmp_path / "canary"
    for name, contents in attacks(canary).items():
        try:
            if name == "plain pickle":
                pickle.loads(contents)
            else:
                torch.load(io.BytesIO(contents), weights_only=False)
        except (AttributeError, TypeError):
            pass  # of what the attack left in its place
        if name != "import":  # which only fetches a function
            assert canary.exists(), name
            canary.unlink()


# ---------------------------------------------------------------- lint

FORBIDDEN = {
    *("eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "marshal.loads"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "shutil.unpack_archive"),
}


def forbidden_calls(source: str) -> list[str]:
    """Returns the calls in a program that run what a file or a user says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "partial":
            name = ast.unparse(node.args[0])
        unpacks = name.endswith((".extractall", ".extract")) and name != "zipfile.ZipFile.extract"
        unsafe = (
            name in FORBIDDEN
            or (unpacks and keywords.get("filter") != "'data'")
            or (name == "torch.load" and keywords.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False")
            or keywords.get("shell", "False") != "False"
        )
        found += [f"{node.lineno}: {name}"] if unsafe else []
    return found


def test_no_call_runs_what_a_file_says() -> None:
    for path in [*ROOT.glob("grcn/**/*.py"), *ROOT.glob("tools/*.py")]:
        assert not forbidden_calls(path.read_text()), path


@pytest.mark.parametrize(
    "call",
    [
        "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t, Loader=L)", "eval(t)",
        "exec(t)", "os.system(t)", "subprocess.run(t, shell=True)", "tarfile.open(f).extractall()",
        "tarfile.open(f).extract(m, filter='tar')", "partial(archive.extract, m)",
        "tempfile.mktemp()", "np.load(f, allow_pickle=True)", "torch.hub.load(a, b)",
    ],
)  # fmt: skip
def test_the_lint_sees(call: str) -> None:
    assert forbidden_calls(f"def f():\n    return {call}") and not forbidden_calls("torch.load(f, weights_only=True)")
