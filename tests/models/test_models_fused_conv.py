"""Convolution, sum and ReLU in one call: the same as one after the other, within a rounding in bfloat16."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from grcn import boxes
from grcn.models.fused_conv import _ONE_CALL, conv2d


class Called(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))

    @property
    def in_one_call(self):
        return any("pointwise" in name for name in self.names)


def inputs(kernel=3, stride=1):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 13, 20).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(24, 16, kernel, kernel), torch.randn(24)
    return x, weight, bias, stride, kernel // 2


def one_after_the_other(x, weight, bias, stride, padding, plus, relu):
    out = F.conv2d(x, weight, bias, stride, padding)
    out = out if plus is None else out + plus
    return F.relu(out) if relu else out


CASES = pytest.mark.parametrize(
    ("kernel", "stride", "with_plus", "relu"),
    [(3, 1, False, True), (1, 2, False, True), (3, 2, True, True), (1, 1, True, False), (3, 1, False, False)],
)


@CASES
def test_float32_is_the_same_to_the_bit_with_the_same_gradients(kernel, stride, with_plus, relu):
    args = inputs(kernel, stride)
    plus = torch.randn_like(F.conv2d(*args)) if with_plus else None
    weight = args[1].requires_grad_()
    expected, ours = one_after_the_other(*args, plus, relu), conv2d(*args, plus=plus, relu=relu)
    assert torch.equal(ours, expected)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), weight)[0] for out in (ours, expected)))
    with torch.no_grad(), Called() as called:
        assert torch.equal(conv2d(*args, plus=plus, relu=relu), expected)
    assert not called.in_one_call


@CASES
@torch.no_grad()
def test_bfloat16_without_a_graph_is_one_call_and_rounds_once(kernel, stride, with_plus, relu):
    args = inputs(kernel, stride)
    plus = torch.randn_like(F.conv2d(*args)).bfloat16() if with_plus else None
    rounded = [value.bfloat16().double() if isinstance(value, torch.Tensor) else value for value in args]
    exact = one_after_the_other(*rounded, None if plus is None else plus.double(), relu)
    with torch.autocast("cpu", torch.bfloat16):
        plain = one_after_the_other(*args, plus, relu)
        with Called() as called:
            ours = conv2d(*args, plus=plus, relu=relu)
        in_one_call = called.in_one_call
        assert in_one_call == (_ONE_CALL is not None and (with_plus or relu))
        with boxes.as_if_on_gpu(), Called() as called:
            assert torch.equal(conv2d(*args, plus=plus, relu=relu), plain) and not called.in_one_call
    assert ours.dtype == torch.bfloat16
    if not (in_one_call and with_plus):  # a CPU that does not multiply bfloat16 rounds the sum too
        assert torch.equal(ours, plain)
    else:  # half a unit in the last of bfloat16's 8 bits, and a little for the order of the sum
        assert_close(ours.double(), exact, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize("size", [(13, 20), (1, 1), (1, 7)])
@pytest.mark.parametrize("formats", itertools.product([torch.channels_last, torch.contiguous_format], repeat=2))
@torch.no_grad()
def test_any_memory_format_will_do(size, formats):
    _, weight, bias, *_ = inputs()
    x = torch.randn(2, 16, *size).to(memory_format=formats[0])
    plus = torch.randn(2, 24, *size).to(memory_format=formats[1])
    with torch.autocast("cpu", torch.bfloat16):
        for more in (None, plus, plus.bfloat16()):
            expected = one_after_the_other(x, weight, bias, 1, 1, more, True)
            assert_close(conv2d(x, weight, bias, 1, 1, more, True).float(), expected.float(), rtol=2**-7, atol=0.05)


@torch.no_grad()
def test_no_images_give_no_maps():
    _, weight, bias, *_ = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        for plus in (None, torch.zeros(0, 24, 5, 5)):
            assert conv2d(torch.zeros(0, 16, 5, 5), weight, bias, 1, 1, plus, True).shape == (0, 24, 5, 5)


def test_a_graph_is_never_cut():
    args = inputs()
    weight = args[1].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        conv2d(*args, relu=True).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_a_cpu_that_does_not_multiply_bfloat16_imitates_it():
    program = """
import torch
from grcn.models import fused_conv
x = torch.randn(1, 4, 5, 5)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    print(fused_conv.conv2d(x, torch.randn(4, 4, 3, 3), None, padding=1, relu=True).dtype)
"""
    older = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=older, check=False)
    assert done.stdout == "torch.bfloat16\n", done.stderr
