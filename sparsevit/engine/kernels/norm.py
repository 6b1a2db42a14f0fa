"""LayerNorm of rows, one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.dependent import begin, launch_options


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x,
    scale,
    shift,
    out,
    rows,
    C: tl.constexpr,
    EPS: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    at = m.to(tl.int64)[:, None] * C + c[None, :]
    mask = (m < rows)[:, None] & (c < C)[None, :]
    begin(DEPENDENT)
    wide = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where((c < C)[None, :], wide - (tl.sum(wide, 1) / C)[:, None], 0.0)
    squares = tl.sum(centred * centred, 1)
    y = centred * tl.rsqrt(squares / C + EPS)[:, None] * tl.load(scale + c, mask=c < C, other=0.0)[None, :]
    y += tl.load(shift + c, mask=c < C, other=0.0)[None, :]
    # Out of the caches first: nothing in the pass reads it again.
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask, cache_modifier=".cs")


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor, *, dependent: bool = False) -> None:
    """LayerNorm of rows `x`, shape `(R, C)`, into `out`; `scale` and `shift` in float32.

    Args:
        dependent: whether it is one of the chain, see `dependent.py`, and not beside it.
    """
    rows, channels = x.shape
    block = triton.next_power_of_2(channels)
    per_program = max(1, 4096 // block)
    _norm[(triton.cdiv(rows, per_program),)](
        x,
        scale,
        shift,
        out,
        rows,
        C=channels,
        EPS=eps,
        BM=per_program,
        BC=block,
        **(launch_options(x) if dependent else {"DEPENDENT": False}),
        num_warps=4,
    )


def norm_reference(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor, *, dependent: bool = False
) -> None:
    """What `norm` computes, in plain PyTorch and the precision of `x`."""
    out.copy_(F.layer_norm(x, x.shape[1:], scale.to(x.dtype), shift.to(x.dtype), eps))
