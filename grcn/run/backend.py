"""Applies a config's settings for threads, arithmetic and memory to torch and the C library."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys

import torch

from grcn.config.schema import Config
from grcn.engine.environment import device_name, multiplies_bf16
from grcn.errors import ConfigError

# Parameters of glibc's mallopt(3), and the largest value of one.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1

logger = logging.getLogger("grcn")


def prepare(cfg: Config, device: torch.device) -> None:
    """Applies a config's threads, arithmetic and determinism to torch in this process.

    Raises:
        ConfigError: the model cannot be deterministic on this device.
    """
    if cfg.run.threads is not None:
        torch.set_num_threads(cfg.run.threads)
    if device.type == "cpu":
        keep_freed_memory()
        if cfg.run.amp == "bf16" and is_x86() and not multiplies_bf16(device):
            logger.warning("run.amp=bf16: this CPU only emulates bfloat16, many times slower; set none")
    torch.backends.cuda.matmul.allow_tf32 = cfg.run.tf32
    if cfg.run.deterministic and device.type == "cuda":
        if cfg.model.roi.op != "align":
            raise ConfigError(
                "run.deterministic: RoIPool is not deterministic on a GPU (got roi.op: pool); set model.roi.op=align"
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrices are multiplied
        torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Keeps freed memory in the process for reuse, instead of returning it to the system at once.

    A step on a CPU frees and allocates the same buffers over and over, and each newly mapped page is a page fault.
    Without these faults training is about a tenth faster; it takes about a tenth more memory, which stays with the
    process. Only glibc supports this; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST)


def with_precision(cfg: Config, device: torch.device, begun: Config | None = None) -> Config:
    """Returns a config whose ``run.amp`` is not ``auto``: bf16 where the device multiplies it, else none.

    Args:
        begun: the config of a run to continue, which keeps its precision on another device.
    """
    if cfg.run.amp != "auto":
        return cfg
    amp = begun.run.amp if begun is not None else "bf16" if multiplies_bf16(device) else "none"
    why = "as the run began" if begun is not None else f"for {device_name(device)}"
    logger.info("run.amp=auto: %s, %s", amp, why)
    return cfg.model_copy(update={"run": cfg.run.model_copy(update={"amp": amp})})


def suggest_bf16(cfg: Config, device: torch.device) -> None:
    """Logs how much faster a CPU would train in bfloat16, if it supports it."""
    if cfg.run.amp == "none" and device.type == "cpu" and multiplies_bf16(device):
        share = "0.9" if cfg.model.is_tiny else "half"
        logger.info("run.amp=none: this CPU multiplies bfloat16 too; run.amp=bf16 takes about %s of the time", share)


def is_x86() -> bool:
    """Whether this is a CPU whose instruction sets are known."""
    return platform.machine() in ("x86_64", "AMD64")
