"""Programmatic dependent launch: a kernel is in place while the one before it ends, and only then reads its results.

A pass is a chain of some seventy short kernels, and without this each leaves the GPU idle for most of a microsecond.
Every kernel of the chain calls `begin`, before which it may read what is older than the kernel before it: the programs
of a kernel start when all of those of the one before have seen the end of the one before that. Such early reads bypass
the L1 cache (`cache_modifier=".cg"`), which may hold what was there a pass ago.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparsevit.engine.kernels.device import is_hopper


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Wait until the kernel before is done, then let the next one take its place."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch(start, COUNT: tl.constexpr, DEPENDENT: tl.constexpr):
    """Have so many values from `start` on brought into L2: each of the first programs asks for its part of them.

    For weights, which were last used a pass ago: they are on their way while the kernel before this one ends. A thread
    asks once for all of its program's part; a request for each line takes longer than most kernels. `start` is aligned
    to 16 bytes.
    """
    if DEPENDENT:
        UNITS: tl.constexpr = COUNT * start.dtype.element_ty.primitive_bitwidth // 128
        share = tl.cdiv(UNITS, tl.minimum(tl.num_programs(0), 128))
        first = tl.program_id(0) * share
        _ask_for(start.to(tl.int64) + first.to(tl.int64) * 16, tl.minimum(share, UNITS - first) * 16)


@triton.jit
def prefetch_own(start, first, COUNT: tl.constexpr, END: tl.constexpr, DEPENDENT: tl.constexpr):
    """Have COUNT values from number `first` on, of END that there are, brought into L2, as `prefetch` does."""
    if DEPENDENT:
        BYTES: tl.constexpr = start.dtype.element_ty.primitive_bitwidth // 8
        length = tl.minimum(COUNT, END - first) * BYTES // 16 * 16
        _ask_for(start.to(tl.int64) + first.to(tl.int64) * BYTES, length)


@triton.jit
def _ask_for(address, length):
    """One thread has so many bytes brought into L2; both are multiples of 16."""
    tl.inline_asm_elementwise(
        """{
        .reg .u32 thread;
        .reg .pred one;
        mov.u32 thread, %tid.x;
        setp.eq.u32 one, thread, 0;
        setp.gt.and.s32 one, $2, 0, one;
        @one cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [address, length],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def launch_options(x: Tensor) -> dict[str, Any]:
    """Keywords of the launch of a kernel that calls `begin(DEPENDENT)`, on the device of `x`."""
    return {"DEPENDENT": True, "launch_pdl": True} if is_hopper(x.device) else {"DEPENDENT": False}
