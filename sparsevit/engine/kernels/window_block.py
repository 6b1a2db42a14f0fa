"""The whole attention half of a block in one pass: norm, queries, keys, values, attention, projection and residual.

One program takes one window and nothing but its tokens leaves or enters the chip, which pays where channels are few.
N tokens in a window, P tokens padded to a power of 2, h heads, D channels of a head, C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.attention import MASK, add_shift_mask, attention_reference
from sparsevit.engine.kernels.linear import Weights, linear_reference
from sparsevit.engine.kernels.parts import normalised, parts_of
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.tuning import Tile


@triton.jit
def _head(y0, y1, y2, real, weight, bias, padding, C: tl.constexpr, PART: tl.constexpr, D: tl.constexpr, AFTER):
    """One head's queries, keys or values, shape `(P, D)`: `weight` points to its first column."""
    d = tl.arange(0, D)
    read = weight + tl.arange(0, PART)[:, None] * (3 * C) + d[None, :]
    out = tl.dot(y0, tl.load(read))
    if PART < C:
        out = tl.dot(y1, tl.load(read + PART * 3 * C), out)
        out = tl.dot(y2, tl.load(read + 2 * PART * 3 * C), out)
    shift = tl.load(bias + d)[None, :]
    if AFTER:
        out += tl.where(real, shift, tl.load(padding + d)[None, :])
    else:
        out += shift
    return out.to(y0.dtype)


@triton.jit(do_not_specialize=["kept", "stride", "window_rows", "window_columns"])
def _window_block(
    x,
    table,
    windows,
    weight,
    bias,
    padding,
    logits,
    weight_out,
    bias_out,
    kept,
    stride,
    window_rows,
    window_columns,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    PART: tl.constexpr,
    EPS: tl.constexpr,
    AFTER: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    P: tl.constexpr,
    MASK: tl.constexpr,
    STAGES: tl.constexpr,
):
    N: tl.constexpr = WINDOW * WINDOW
    D: tl.constexpr = C // HEADS
    number = tl.program_id(0)
    image = number // kept
    slot = image * stride + (number - image * kept)
    window = tl.load(windows + slot)
    n = tl.arange(0, P)
    row = tl.load(table + slot * N + n, mask=n < N, other=-1)
    real = (row >= 0)[:, None]
    c = tl.arange(0, PART)
    d = tl.arange(0, D)
    at = x + row.to(tl.int64)[:, None] * C + c[None, :]
    y0, y1, y2 = normalised(at, real, C, PART, EPS)

    acc0 = tl.zeros((P, PART), tl.float32)
    if PART < C:
        acc1 = tl.zeros((P, PART), tl.float32)
        acc2 = tl.zeros((P, PART), tl.float32)
    for head in tl.range(0, HEADS, num_stages=STAGES):
        i = head * D
        q = _head(y0, y1, y2, real, weight + i, bias + i, padding + i, C, PART, D, AFTER)
        i += C
        k = _head(y0, y1, y2, real, weight + i, bias + i, padding + i, C, PART, D, AFTER)
        i += C
        v = _head(y0, y1, y2, real, weight + i, bias + i, padding + i, C, PART, D, AFTER)
        scores = tl.dot(q, tl.trans(k))
        scores += tl.load(logits + head * P * P + n[:, None] * P + n[None, :]).to(tl.float32)
        if SHIFT:
            scores = add_shift_mask(scores, window, window_rows, window_columns, WINDOW, SHIFT, P, MASK)
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        attended = (tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]).to(v.dtype)
        read = weight_out + (head * D + d)[:, None] * C + c[None, :]
        acc0 = tl.dot(attended, tl.load(read), acc0)
        if PART < C:
            acc1 = tl.dot(attended, tl.load(read + PART), acc1)
            acc2 = tl.dot(attended, tl.load(read + 2 * PART), acc2)

    acc0 += tl.load(bias_out + c)[None, :] + tl.load(at, mask=real, other=0.0).to(tl.float32)
    tl.store(at, acc0.to(x.dtype.element_ty), mask=real)
    if PART < C:
        acc1 += tl.load(bias_out + PART + c)[None, :] + tl.load(at + PART, mask=real, other=0.0).to(tl.float32)
        tl.store(at + PART, acc1.to(x.dtype.element_ty), mask=real)
        acc2 += tl.load(bias_out + 2 * PART + c)[None, :] + tl.load(at + 2 * PART, mask=real, other=0.0).to(tl.float32)
        tl.store(at + 2 * PART, acc2.to(x.dtype.element_ty), mask=real)


def window_block(
    x: Tensor,
    qkv: Weights,
    bias: Tensor,
    projection: Weights,
    rows: Rows,
    *,
    window: int,
    shift: int,
    grid: tuple[int, int],
    tile: Tile,
) -> None:
    """Add attention's output to the tokens of windows, in place.

    Args:
        x: token buffer, shape `(R, C)`.
        qkv: norm and queries, keys, values, shape `(C, 3 * C)`; queries are scaled, in base 2 (times log2 e).
        bias: relative position bias in base 2, shape `(h, P, P)`; -inf in the columns of no token.
        projection: shape `(C, C)`.
        rows: which windows to work on.
        grid: rows and columns of windows in a map.
        tile: only warps and stages are used.
    """
    channels = x.shape[1]
    _window_block[(rows.total_windows,)](
        x,
        rows.table,
        rows.windows,
        qkv.weight,
        qkv.bias,
        qkv.padding,
        bias,
        projection.weight,
        projection.bias,
        rows.kept,
        rows.windows.shape[1],
        *grid,
        C=channels,
        HEADS=bias.shape[0],
        PART=parts_of(channels),
        EPS=qkv.eps,
        AFTER=qkv.pads_after_norm,
        WINDOW=window,
        SHIFT=shift,
        P=bias.shape[1],
        MASK=MASK,
        STAGES=tile.stages,
        num_warps=tile.warps,
    )


def window_block_reference(
    x: Tensor,
    qkv: Weights,
    bias: Tensor,
    projection: Weights,
    rows: Rows,
    *,
    window: int,
    shift: int,
    grid: tuple[int, int],
    tile: Tile,
) -> None:
    """What `window_block` computes, in plain PyTorch and the precision of `x`."""
    compact = x.new_empty(rows.total, 3 * x.shape[1])
    linear_reference(x, qkv, compact, tile, source=rows)
    attended = torch.empty_like(compact[:, : x.shape[1]])
    attention_reference(compact, bias, rows, attended, window=window, shift=shift, grid=grid, programs=1)
    linear_reference(attended, projection, x, tile, target=rows)
