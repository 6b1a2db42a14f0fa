"""Programmatic dependent launch: a kernel is in place while the one before it ends, and only then reads its results.

A pass is a chain of some seventy short kernels, and without this each leaves the GPU idle for most of a microsecond.
Every kernel of the chain calls `begin` before it touches memory that others write, so that when one has finished, all
before it have.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Let the next kernel take its place, and wait until the one before is done."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch(pointers, mask):
    """Have the cache lines at these addresses brought into L2, whether they are needed soon or not."""
    tl.inline_asm_elementwise(
        "{ .reg .pred wanted; setp.ne.s32 wanted, $2, 0; @wanted prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [pointers.to(tl.int64), mask.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def launch_options(x: Tensor) -> dict[str, Any]:
    """Keywords of the launch of a kernel that calls `begin(DEPENDENT)`, on the device of `x`."""
    return {"DEPENDENT": True, "launch_pdl": True} if x.is_cuda and _supported(x.device) else {"DEPENDENT": False}


@cache
def _supported(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
