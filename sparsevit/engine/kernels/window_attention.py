"""Norm, queries, keys and values, and attention in one pass over windows: what is attended to never leaves the chip.

A program keeps one head's weights and takes several windows in turn, which pays where channels are few: rows are read
once for each head. The channels are taken in one or three parts that are powers of 2, as Triton's blocks are. N tokens
in a window, P tokens padded to a power of 2, h heads, D channels of a head, C channels (h * D), R rows of the token
buffer.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.attention import attended, attention_reference, kind_of, table_of
from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.folded import Weights, normed, normed_product
from sparsevit.engine.kernels.parts import parts_of, read_part
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import add_up, load_each
from sparsevit.engine.tuning import Tile, WindowChoice


@triton.jit
def _columns(weight, head, C: tl.constexpr, D: tl.constexpr, PART: tl.constexpr, REST: tl.constexpr):
    """Columns of a head's queries, keys and values, and D of zeros: of both parts of the rows, or the first twice.

    Four times D, as Triton's blocks are powers of 2. Three products would each be waited for, twice.
    """
    column = tl.arange(0, 4 * D)
    n = head * (3 * D) + column
    there = (column < 3 * D)[None, :]
    w0 = tl.load(weight + tl.arange(0, PART)[:, None] * (3 * C) + n[None, :], mask=there, other=0.0)
    w1 = w0
    if REST:
        w1 = tl.load(weight + (PART + tl.arange(0, REST))[:, None] * (3 * C) + n[None, :], mask=there, other=0.0)
    return w0, w1


@triton.jit
def _apart(y, P: tl.constexpr, D: tl.constexpr):
    """Queries, keys and values of a product with `_columns`; each thread holds its part of all, so nothing moves."""
    y = tl.permute(tl.reshape(y, (P, 2, 2, D)), (0, 3, 2, 1))
    low, high = tl.split(y)
    q, k = tl.split(low)
    v, _ = tl.split(high)
    return q, k, v


@triton.jit
def _product(x0, x1, w0, w1, REST: tl.constexpr):
    y = tl.dot(x0, w0)
    if REST:
        y = tl.dot(x1, w1, y)
    return y


@triton.jit
def _projected(
    y, total, squares, real, bias, padding, column_sums, n, C: tl.constexpr, EPS: tl.constexpr, PADS_AFTER: tl.constexpr
):
    """From a product to queries, keys or values, of the columns `n`.

    What belongs to columns is read anew for each window: kept, it would take the registers of a fourth of the programs.
    """
    y = normed(y, total, squares, tl.load(column_sums + n), C, EPS)
    shift = tl.load(bias + n)[None, :]
    if PADS_AFTER:
        shift = tl.where(real[:, None], shift, tl.load(padding + n)[None, :])
    return y + shift


@triton.jit
def _rows(table, number, kept, stride, n, N: tl.constexpr):
    image = number // kept
    return tl.load(table + (image * stride + number - image * kept) * N + n, mask=n < N, other=-1)


@triton.jit(do_not_specialize=["total", "each", "kept", "stride", "window_rows", "window_columns"])
def _window_attention(
    x,
    weight,
    bias,
    padding,
    column_sums,
    sums,
    logits,
    table,
    windows,
    out,
    total,
    each,
    kept,
    stride,
    window_rows,
    window_columns,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    P: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    EPS: tl.constexpr,
    PADS_AFTER: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    N: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0) % HEADS
    first = tl.program_id(0) // HEADS * each
    end = tl.minimum(first + each, total)
    n = tl.arange(0, P)
    d = tl.arange(0, D)
    queries = head * (3 * D) + d
    keys = queries + D
    values = keys + D
    w0, w1 = _columns(weight, head, C, D, PART, REST)
    if not SHIFTED:
        added = table_of(logits, head, 0, HEADS, P)
    begin(DEPENDENT)
    # Sums are asked for a window ahead: only what products take does the compiler bring early by itself.
    following = _rows(table, first, kept, stride, n, N)
    of_slots = load_each(sums, following, following >= 0, C)
    dtype: tl.constexpr = x.dtype.element_ty
    for number in tl.range(first, end, num_stages=STAGES):
        row = _rows(table, number, kept, stride, n, N)
        real = row >= 0
        x0 = read_part(x, row, 0, C, PART)
        x1 = x0
        if REST:
            x1 = read_part(x, row, PART, C, REST)
        if SHIFTED:
            image = number // kept
            window = tl.load(windows + image * stride + number - image * kept)
            added = table_of(logits, head, kind_of(window, window_rows, window_columns), HEADS, P)
        row_sums, squares = add_up(of_slots)
        following = _rows(table, tl.minimum(number + 1, end - 1), kept, stride, n, N)
        of_slots = load_each(sums, following, following >= 0, C)

        q, k, v = _apart(_product(x0, x1, w0, w1, REST), P, D)
        q = _projected(q, row_sums, squares, real, bias, padding, column_sums, queries, C, EPS, PADS_AFTER).to(dtype)
        k = _projected(k, row_sums, squares, real, bias, padding, column_sums, keys, C, EPS, PADS_AFTER).to(dtype)
        v = _projected(v, row_sums, squares, real, bias, padding, column_sums, values, C, EPS, PADS_AFTER).to(dtype)
        y = attended(q, k, v, added)
        write = out + (number * N + n).to(tl.int64)[:, None] * C + (head * D + d)[None, :]
        tl.store(write, y.to(dtype), mask=(n < N)[:, None])


def window_attention(
    x: Tensor,
    weights: Weights,
    logits: Tensor,
    rows: Rows,
    sums: Tensor,
    out: Tensor,
    choice: WindowChoice,
    *,
    window: int,
    grid: tuple[int, int],
) -> None:
    """Attend inside each window of rows of the token buffer.

    Args:
        x: token buffer, shape `(R, C)`.
        weights: norm and layer of queries, keys and values, shape `(C, 3 * C)`, those of a head side by side; queries
            are scaled, in base 2.
        logits: what is added, see `attention`.
        rows: which windows.
        sums: of the rows of `x`, shape `(R, S, 2)`, float32; see `sums.py`.
        out: compact rows, shape `(windows * N, C)`.
        grid: rows and columns of windows in a map.
    """
    kinds, heads, padded, _ = logits.shape
    channels, total = x.shape[1], rows.total_windows
    part, rest = parts_of(channels)
    _window_attention[(triton.cdiv(total, choice.each) * heads,)](
        x,
        weights.weight,
        weights.bias,
        weights.padding,
        weights.column_sums,
        sums,
        logits,
        rows.table,
        rows.windows,
        out,
        total,
        choice.each,
        rows.kept,
        rows.windows.shape[1],
        *grid,
        HEADS=heads,
        D=channels // heads,
        WINDOW=window,
        SHIFTED=kinds > 1,
        P=padded,
        PART=part,
        REST=rest,
        EPS=weights.eps,
        PADS_AFTER=weights.pads_after_norm,
        STAGES=choice.stages,
        **launch_options(x),
        num_warps=choice.warps,
        maxnreg=choice.registers,
    )


def window_attention_reference(
    x: Tensor,
    weights: Weights,
    logits: Tensor,
    rows: Rows,
    sums: Tensor,
    out: Tensor,
    choice: WindowChoice | Tile,
    *,
    window: int,
    grid: tuple[int, int],
    settled: bool = True,
) -> None:
    """What `window_attention` computes, in plain PyTorch and the precision of `x`."""
    qkv = normed_product(rows.gather(x), weights)
    if weights.pads_after_norm:
        qkv[rows.flat() < 0] = weights.padding.to(qkv.dtype)
    attention_reference(qkv, logits, rows, out, window=window, grid=grid, programs=1)
