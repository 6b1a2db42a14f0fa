"""What a linear layer does with a block besides its products: where they start, what is made of them and where it goes.

M rows, K channels in, N channels out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsevit.engine.kernels.folded import normed
from sparsevit.engine.kernels.gelu import gelu
from sparsevit.engine.kernels.sums import store_block_sums


@triton.jit
def start(n, bias, N: tl.constexpr, ADDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """What products are added to: the bias, where results are added to a residual."""
    acc = tl.zeros((BM, BN), tl.float32)
    if ADDS:
        acc += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    return acc


@triton.jit
def read_residual(residual, at, there, n, N: tl.constexpr):
    """Columns `n` of the residual's rows `at`; 0 where there is nothing."""
    place = residual + at.to(tl.int64)[:, None] * N + n[None, :]
    return tl.load(place, mask=there[:, None] & (n < N)[None, :], other=0.0, cache_modifier=".cg")


@triton.jit
def finish(
    acc,
    added,
    first,
    residual,
    at,
    there,
    to,
    kept,
    real,
    total,
    squares,
    bias,
    padding,
    column_sums,
    sums,
    out,
    out_blocks,
    out_row,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    PADS_AFTER: tl.constexpr,
    GELU: tl.constexpr,
    TANH: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
    STORES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """From sums of products to what is stored, for BN columns from `first` on, in the rows `to` that are `kept`.

    The residual's rows are `at`, where `there`; `added` is what was read of them where that was EARLY. With STORES rows
    are compact, and a tensor map takes them from `out_row` on.
    """
    n = first + tl.arange(0, BN)
    if NORM:
        of_columns = tl.load(column_sums + n, mask=n < N, other=0.0)
        acc = normed(acc, total, squares, of_columns, K, EPS)
    if not ADDS:
        shift = tl.load(bias + n, mask=n < N, other=0.0)
        if PADS_AFTER:
            other = tl.load(padding + n, mask=n < N, other=0.0)
            acc += tl.where(real[:, None], shift[None, :], other[None, :])
        else:
            acc += shift[None, :]
    if GELU:
        acc = gelu(acc, TANH)
    if ADDS:
        if not EARLY:
            added = read_residual(residual, at, there, n, N)
        acc += added.to(tl.float32)
    if STORES:
        out_blocks.store([out_row, first], acc.to(out.dtype.element_ty))
    else:
        mask = kept[:, None] & (n < N)[None, :]
        tl.store(out + to.to(tl.int64)[:, None] * N + n[None, :], acc.to(out.dtype.element_ty), mask=mask)
    if ADDS:
        store_block_sums(sums, to, kept, acc, first, N, BM, BN)
