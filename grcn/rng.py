"""Counter-based randomness: every random number is a hash of its purpose, never of earlier draws.

A number is ``hash(seed, purpose, global sample number, ...)``, so it does not depend on workers, processes, devices
or call order, and resuming a run needs no generator state, only the step. The hash chains the finaliser of splitmix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) over the words; CPU, GPU and Python
give the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Purposes: the second word of a hash, so that draws for different ends are independent. The first is the seed, or the
# key of an image, which is itself a hash for SAMPLE.
ORDER, AUGMENT, ANCHORS, ROIS, DROPOUT, INIT, SHAPES, SAMPLE, SCALE, STEP = range(1, 11)

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MASK64 = (1 << 64) - 1
_MASK63 = (1 << 63) - 1


def hash_int(*words: int) -> int:
    """Hashes integers to one integer in [0, 2**63). Words are taken modulo 2**64."""
    return _state_int(*words) & _MASK63


def hash_tensor(*words: int | Tensor) -> Tensor:
    """Hashes integers and int64 tensors, which broadcast, to an int64 tensor in [0, 2**63).

    ``hash_tensor(a, b)[i] == hash_int(int(a[i]), int(b[i]))``. Leading plain integers cost nothing on the device, and
    nothing is read back to the host.

    Raises:
        ValueError: no word is a tensor.
    """
    state: int | Tensor = 0
    for word in words:
        if isinstance(state, Tensor):
            state = _step_tensor(state ^ (_signed(word & _MASK64) if isinstance(word, int) else word))
        elif isinstance(word, Tensor):
            state = _step_tensor(word ^ _signed(state))
        else:
            state = _step_int(state ^ (word & _MASK64))
    if not isinstance(state, Tensor):
        raise ValueError("hash_tensor needs at least one tensor; use hash_int for integers alone")
    return state & _MASK63


def hash_on(state: Tensor, word: Tensor) -> Tensor:
    """Hashes one more word after those of ``state`` (:func:`image_states`), to int64 in [0, 2**63)."""
    return _step_tensor(state ^ word) & _MASK63


def uniform(*words: int) -> float:
    """Hashes integers to a float in [0, 1) with 53 random bits."""
    return unit(hash_int(*words))


def unit(value: int) -> float:
    """Returns a hash of :func:`hash_int` as a float in [0, 1): ``unit(hash_int(*words)) == uniform(*words)``."""
    return (value >> 10) * 2.0**-53


def permutation(n: int, *words: int) -> np.ndarray:
    """Returns a random order of ``range(n)`` as int64 ``[n]``: the indices sorted by their hash."""
    keys = hash_tensor(hash_int(*words), torch.arange(n))
    return torch.sort(keys, stable=True).indices.numpy()


def image_states(targets: list[dict], device: torch.device, *words: tuple[int, ...]) -> Tensor:
    """Hashes each image's key and some words, for :func:`hash_on` to continue from.

    Keys are the targets' ``rng_key``; the loader's are plain integers, which are hashed here on the host: there are
    few, and every one of a dozen operators on them would cost a GPU as much as one on a million. A tensor on a GPU
    works too, at the cost of a synchronisation. Targets without a key (from a caller's own loader) get keys from
    torch's generator of the CPU, so ``torch.manual_seed`` controls them as it controls torchvision's detectors.

    Returns:
        int64 ``[len(words), N]``: ``hash_on(result[i, n], w) == hash_tensor(key of n, *words[i], w)``.
    """
    given = all("rng_key" in target for target in targets)
    keys = [int(target["rng_key"]) for target in targets] if given else torch.randint(_MASK63, (len(targets),)).tolist()
    states = torch.tensor([[_state_int(key, *own) for key in keys] for own in words], dtype=torch.int64)
    return states.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else states.to(device)


def _state_int(*words: int) -> int:
    state = 0
    for word in words:
        state = _step_int(state ^ (word & _MASK64))
    return _signed(state)


def _step_int(state: int) -> int:
    state = state + _GOLDEN & _MASK64
    state = (state ^ state >> 30) * _MIX1 & _MASK64
    state = (state ^ state >> 27) * _MIX2 & _MASK64
    return state ^ state >> 31


def _step_tensor(state: Tensor) -> Tensor:
    """The same step on int64, whose arithmetic wraps like uint64; ``>>`` needs its sign bits masked off."""
    state = state + _signed(_GOLDEN)
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * _signed(_MIX1)
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * _signed(_MIX2)
    return state ^ (state >> 31 & (1 << 33) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
