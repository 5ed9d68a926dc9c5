"""Records the environment of a run in ``env.json``."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from grcn.engine.distributed import world_size
from grcn.errors import DataError
from grcn.fileio import write_durably

logger = logging.getLogger("grcn")

# Flags of grcn train after which a run does not follow from its config alone.
FLAGS = ("--init", "--resume-from", "--allow-changes", "--torchvision")


def write_environment(
    folder: Path,
    device: torch.device,
    facts: Mapping[str, object] | None = None,
    flags: Sequence[str] = (),
    continued: bool = False,
) -> None:
    """Writes a run's ``env.json``: versions, device, threads, revision, command lines, and ``facts``.

    Args:
        flags: those of :data:`FLAGS` that this start has.
        continued: the run is resumed, so its earlier command lines and flags are kept, if the file is not damaged.
    """
    on_gpu = device.type == "cuda"
    before: dict[str, Any] = {}
    if continued:
        try:
            before = read_environment(folder)
        except DataError:  # no reason to stop a training
            logger.warning("%s: damaged; the command lines in it are lost", folder / "env.json")
    commands = [*commands_of(before), sys.argv]
    environment = {
        "commands": [command for place, command in enumerate(commands) if command not in commands[:place]],
        "flags": sorted({*flags_of(before), *flags}),
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "device": device_name(device),
        "instruction_sets": instruction_sets(),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "platform": platform.platform(),
        **(facts or {}),
    }
    write_durably(folder / "env.json", (json.dumps(environment, indent=2) + "\n").encode())


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or that of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(_cpu().get("cpu_name") or platform.processor() or platform.machine())


def instruction_sets() -> list[str]:
    """Lists the vector and matrix instructions of an x86 CPU that its speed depends on; empty for others."""
    known = {"AVX2": "avx2", "AVX512": "avx512_f", "AVX512-BF16": "avx512_bf16", "AMX": "amx_bf16"}
    return [name for name, key in known.items() if _cpu().get(key)]


def _cpu() -> Mapping[str, Any]:
    """Returns torch's information on the CPU, by name; empty in torch 2.10."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def multiplies_bf16(device: torch.device) -> bool:
    """Returns whether a device is known to multiply bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not {"AVX512-BF16", "AMX"}.isdisjoint(instruction_sets())


def read_environment(folder: Path) -> dict[str, Any]:
    """Returns the contents of a run's ``env.json``; empty where there is no such file.

    Raises:
        DataError: it is damaged.
    """
    path = folder / "env.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError):
        raise DataError(f"{path}: damaged; restore it, or remove the run's folder") from None


def commands_of(environment: Mapping[str, Any]) -> list[list[str]]:
    """Returns the command lines that started and continued a run, of the contents of its ``env.json``."""
    older = [environment["command"]] if "command" in environment else []
    return list(environment.get("commands", older))


def flags_of(environment: Mapping[str, Any]) -> list[str]:
    """Returns those of :data:`FLAGS` that any start of a run had, of the contents of its ``env.json``."""
    older = environment.get("command", [])
    return sorted(set(FLAGS).intersection(environment.get("flags", older)))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Returns this package's git revision, with ``+changes`` if files differ, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = "git describe --always --abbrev=40 --exclude=* --dirty=+changes".split()
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
