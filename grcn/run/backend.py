"""Sets torch and the C library to the threads, arithmetic and memory use of a config."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys

import torch

from grcn.config.schema import Config
from grcn.errors import ConfigError

# Parameters of glibc's mallopt(3), and the largest value of one.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1

logger = logging.getLogger("grcn")


def prepare(cfg: Config, device: torch.device) -> None:
    """Sets torch, in this process, to the threads, arithmetic and determinism of a config.

    Raises:
        ConfigError: the model cannot be deterministic on this device.
    """
    if cfg.run.threads is not None:
        torch.set_num_threads(cfg.run.threads)
    if device.type == "cpu":
        keep_freed_memory()
        if cfg.run.amp == "bf16" and not _computes_bf16():
            logger.warning("run.amp=bf16: this CPU has no such arithmetic and imitates it many times slower; set none")
    torch.backends.cuda.matmul.allow_tf32 = cfg.run.tf32
    if cfg.run.deterministic and device.type == "cuda":
        if cfg.model.roi.op != "align":
            raise ConfigError("run.deterministic: RoIPool is not, on a GPU (got roi.op: pool); set model.roi.op=align")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrices are multiplied
        torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Lets freed tensors be used again instead of given back to the system at once.

    A step on a CPU frees and takes the same buffers over and over, and each page that is taken anew is a fault: it
    trains about a tenth faster without, and takes about a tenth more memory, which stays with the process. Elsewhere
    than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST)


def _computes_bf16() -> bool:
    """Tells whether this CPU computes in bfloat16; of those that are not x86, supposes it."""
    known = platform.machine() in ("x86_64", "AMD64")
    return not known or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
