"""Norm, both linear layers of a feed-forward network, the GELU between them and the residual, in one pass over rows.

Hidden values never leave the chip, which pays where channels are few. M rows, C channels, F hidden channels. The
channels are taken in one or two parts that are powers of 2, as Triton's blocks are.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.dependent import begin, launch_options, prefetch
from sparsevit.engine.kernels.device import shared_memory
from sparsevit.engine.kernels.folded import Weights
from sparsevit.engine.kernels.gelu import gelu, has_tanh
from sparsevit.engine.kernels.parts import normalised, parts_of, read_part
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import slots, store_sums, sums_of
from sparsevit.engine.tuning import Tile


@triton.jit(do_not_specialize=["rows", "per_image", "stride"])
def _feed_forward(
    x,
    table,
    weight1,
    bias1,
    weight2,
    bias2,
    sums,
    rows,
    per_image,
    stride,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    EPS: tl.constexpr,
    TANH: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    STAGES: tl.constexpr,
    SLOTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = m < rows
    image = m // per_image
    row = tl.load(table + image * stride + (m - image * per_image), mask=inside, other=-1, cache_modifier=".cg")
    real = (row >= 0)[:, None]
    prefetch(weight1, C * HIDDEN, DEPENDENT)
    prefetch(weight2, C * HIDDEN, DEPENDENT)
    prefetch(bias1, HIDDEN, DEPENDENT)
    prefetch(bias2, C, DEPENDENT)
    begin(DEPENDENT)
    c = tl.arange(0, PART)
    x0 = read_part(x, row, 0, C, PART)
    x1 = x0
    if REST:
        r = PART + tl.arange(0, REST)
        x1 = read_part(x, row, PART, C, REST)
    y0, y1 = normalised(x0, x1, C, REST, EPS)

    acc0 = tl.zeros((BM, PART), tl.float32)
    if REST:
        acc1 = tl.zeros((BM, REST), tl.float32)
    h = tl.arange(0, BH)
    for start in tl.range(0, HIDDEN, BH, num_stages=STAGES):
        hidden = tl.dot(y0, tl.load(weight1 + c[:, None] * HIDDEN + (start + h)[None, :]))
        if REST:
            hidden = tl.dot(y1, tl.load(weight1 + r[:, None] * HIDDEN + (start + h)[None, :]), hidden)
        hidden = gelu(hidden + tl.load(bias1 + start + h)[None, :], TANH).to(y0.dtype)
        acc0 = tl.dot(hidden, tl.load(weight2 + (start + h)[:, None] * C + c[None, :]), acc0)
        if REST:
            acc1 = tl.dot(hidden, tl.load(weight2 + (start + h)[:, None] * C + r[None, :]), acc1)

    at = x + row.to(tl.int64)[:, None] * C
    acc0 += tl.load(bias2 + c)[None, :] + read_part(x, row, 0, C, PART).to(tl.float32)
    tl.store(at + c[None, :], acc0.to(x.dtype.element_ty), mask=real)
    total = tl.sum(acc0, 1)
    squares = tl.sum(acc0 * acc0, 1)
    if REST:
        acc1 += tl.load(bias2 + r)[None, :] + read_part(x, row, PART, C, REST).to(tl.float32)
        tl.store(at + r[None, :], acc1.to(x.dtype.element_ty), mask=real)
        total += tl.sum(acc1, 1)
        squares += tl.sum(acc1 * acc1, 1)
    store_sums(sums, row, row >= 0, total, squares, C, SLOTS)


def feed_forward(x: Tensor, first: Weights, second: Weights, rows: Rows, sums: Tensor, tile: Tile) -> None:
    """Add the feed-forward network's output to rows of the token buffer, in place.

    Args:
        x: token buffer, shape `(R, C)`.
        first: norm and first layer, shape `(C, F)`; second: shape `(F, C)`.
        rows: which to work on; their table is older than the kernel launched before.
        sums: of the rows of `x`, shape `(R, S, 2)`, float32, written for those worked on; see `sums.py`.
        tile: `columns` are hidden channels at a time; `depth` is not used.
    """
    channels, hidden = first.weight.shape
    part, rest = parts_of(channels)
    step, kept = 2 * tile.columns * channels * x.element_size(), tile.rows * channels * x.element_size()
    _feed_forward[(triton.cdiv(rows.total, tile.rows),)](
        x,
        rows.table,
        first.weight,
        first.bias,
        second.weight,
        second.bias,
        sums,
        rows.total,
        rows.per_image,
        rows.table.shape[1],
        C=channels,
        HIDDEN=hidden,
        PART=part,
        REST=rest,
        EPS=first.eps,
        TANH=has_tanh(x),
        BM=tile.rows,
        BH=tile.columns,
        STAGES=tile.within(shared_memory(x.device), step, kept),
        SLOTS=triton.next_power_of_2(slots(channels)),
        **launch_options(x),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )


def feed_forward_reference(x: Tensor, first: Weights, second: Weights, rows: Rows, sums: Tensor, tile: Tile) -> None:
    """What `feed_forward` computes, in plain PyTorch and the precision of `x`."""
    before = rows.gather(x)
    y = F.layer_norm(before, before.shape[1:], eps=first.eps or 0.0)
    y = F.gelu(y @ first.weight.to(x.dtype) + first.bias.to(x.dtype))
    after = before + (y @ second.weight.to(x.dtype) + second.bias.to(x.dtype))
    rows.scatter(x, after)
    rows.scatter(sums, sums_of(after))
