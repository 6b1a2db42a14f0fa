"""LayerNorm of rows, and the sums that others fold a norm from; one pass each.

R rows, C channels. The sums of a row are the sum and the sum of squares of its values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.rows import Rows


@triton.jit(do_not_specialize=["rows"])
def _norm(x, scale, shift, out, sums, rows, C: tl.constexpr, EPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    at = m.to(tl.int64)[:, None] * C + c[None, :]
    mask = (m < rows)[:, None] & (c < C)[None, :]
    wide = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(wide, 1)
    centred = tl.where((c < C)[None, :], wide - (total / C)[:, None], 0.0)
    squares = tl.sum(centred * centred, 1)
    y = centred * tl.rsqrt(squares / C + EPS)[:, None] * tl.load(scale + c, mask=c < C, other=0.0)[None, :]
    y += tl.load(shift + c, mask=c < C, other=0.0)[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)
    tl.store(sums + 2 * m, total, mask=m < rows)
    tl.store(sums + 2 * m + 1, squares + total * total / C, mask=m < rows)


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor, sums: Tensor) -> None:
    """LayerNorm of rows `x`, shape `(R, C)`, into `out`, and the rows' sums, shape `(R, 2)`, float32."""
    rows, channels = x.shape
    block = triton.next_power_of_2(channels)
    per_program = max(1, 4096 // block)
    _norm[(triton.cdiv(rows, per_program),)](
        x, scale, shift, out, sums, rows, C=channels, EPS=eps, BM=per_program, BC=block, num_warps=4
    )


def norm_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor, sums: Tensor) -> None:
    """What `norm` computes, in plain PyTorch and the precision of `x`."""
    out.copy_(F.layer_norm(x, x.shape[1:], scale.to(x.dtype), shift.to(x.dtype), eps))
    sums.copy_(torch.stack([x.sum(1), x.square().sum(1)], 1))


@triton.jit(do_not_specialize=["rows", "per_image", "stride"])
def _row_sums(x, table, sums, rows, per_image, stride, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    image = m // per_image
    row = tl.load(table + image * stride + (m - image * per_image), mask=m < rows, other=-1)
    c = tl.arange(0, BC)
    mask = (row >= 0)[:, None] & (c < C)[None, :]
    wide = tl.load(x + row.to(tl.int64)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + 2 * row, tl.sum(wide, 1), mask=row >= 0)
    tl.store(sums + 2 * row + 1, tl.sum(wide * wide, 1), mask=row >= 0)


def row_sums(x: Tensor, rows: Rows, sums: Tensor) -> None:
    """The sums of some rows of the token buffer `x`, shape `(R, C)`, into those of all, shape `(R, 2)`, float32."""
    channels = x.shape[1]
    block = triton.next_power_of_2(channels)
    per_program = max(1, 4096 // block)
    _row_sums[(triton.cdiv(rows.total, per_program),)](
        x,
        rows.table,
        sums,
        rows.total,
        rows.per_image,
        rows.table.shape[1],
        C=channels,
        BM=per_program,
        BC=block,
        num_warps=4,
    )


def row_sums_reference(x: Tensor, rows: Rows, sums: Tensor) -> None:
    """What `row_sums` computes, in plain PyTorch and the precision of `x`."""
    values = rows.gather(x)
    rows.scatter(sums, torch.stack([values.sum(1), values.square().sum(1)], 1))
