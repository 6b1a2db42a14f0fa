"""`feed_forward` with all weights held in shared memory, by as many programs as there are multiprocessors.

A program takes blocks of rows in turn, so weights are read once and not once a block, and no product waits for them.
They must fit: those of 96 channels take 144 KiB. For few rows there are too few blocks for that.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsevit.engine.kernels.dependent import begin, launch_options
from sparsevit.engine.kernels.device import multiprocessors, shared_memory
from sparsevit.engine.kernels.feed_forward import feed_forward_reference
from sparsevit.engine.kernels.folded import Weights
from sparsevit.engine.kernels.gelu import gelu, has_tanh
from sparsevit.engine.kernels.parts import normalised, parts_of, read_part
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import slots, store_sums
from sparsevit.engine.tuning import SPARE, Tile


@triton.jit
def _rows_of(table, block, rows, per_image, stride, BM: tl.constexpr):
    m = block * BM + tl.arange(0, BM)
    image = m // per_image
    return tl.load(table + image * stride + (m - image * per_image), mask=m < rows, other=-1, cache_modifier=".cg")


@triton.jit
def _load_weights(
    weight1, weight2, C: tl.constexpr, HIDDEN: tl.constexpr, PART: tl.constexpr, REST: tl.constexpr, BH: tl.constexpr
):
    """For each BH hidden channels: what takes both parts of the channels there, and what takes them back."""
    c = tl.arange(0, PART)
    h = tl.arange(0, BH)
    into = ()
    back = ()
    into_rest = ()
    back_rest = ()
    for start in tl.static_range(0, HIDDEN, BH):
        into += (tl.load(weight1 + c[:, None] * HIDDEN + (start + h)[None, :]),)  # type: ignore[assignment]
        back += (tl.load(weight2 + (start + h)[:, None] * C + c[None, :]),)  # type: ignore[assignment]
        if REST:
            r = PART + tl.arange(0, REST)
            into_rest += (tl.load(weight1 + r[:, None] * HIDDEN + (start + h)[None, :]),)  # type: ignore[assignment]
            back_rest += (tl.load(weight2 + (start + h)[:, None] * C + r[None, :]),)  # type: ignore[assignment]
    return into, back, into_rest, back_rest


@triton.jit(do_not_specialize=["rows", "per_image", "stride", "blocks"])
def _held_feed_forward(
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
    blocks,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    PART: tl.constexpr,
    REST: tl.constexpr,
    EPS: tl.constexpr,
    TANH: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    SLOTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    c = tl.arange(0, PART)
    h = tl.arange(0, BH)
    into, back, into_rest, back_rest = _load_weights(weight1, weight2, C, HIDDEN, PART, REST, BH)
    step = tl.num_programs(0)
    row = _rows_of(table, tl.program_id(0), rows, per_image, stride, BM)
    following = _rows_of(table, tl.program_id(0) + step, rows, per_image, stride, BM)
    begin(DEPENDENT)
    x0 = read_part(x, row, 0, C, PART)
    x1 = x0
    if REST:
        r = PART + tl.arange(0, REST)
        x1 = read_part(x, row, PART, C, REST)
    for block in tl.range(tl.program_id(0), blocks, step, num_stages=1):
        next0 = read_part(x, following, 0, C, PART)  # a block ahead, as nothing else is there to fill the wait
        next1 = next0
        if REST:
            next1 = read_part(x, following, PART, C, REST)
        after = _rows_of(table, block + 2 * step, rows, per_image, stride, BM)

        y0, y1 = normalised(x0, x1, C, REST, EPS)
        acc0 = x0.to(tl.float32) + tl.load(bias2 + c)[None, :]
        if REST:
            acc1 = x1.to(tl.float32) + tl.load(bias2 + r)[None, :]
        for number in tl.static_range(HIDDEN // BH):
            hidden = tl.dot(y0, into[number])
            if REST:
                hidden = tl.dot(y1, into_rest[number], hidden)
            hidden = gelu(hidden + tl.load(bias1 + number * BH + h)[None, :], TANH).to(y0.dtype)
            acc0 = tl.dot(hidden, back[number], acc0)
            if REST:
                acc1 = tl.dot(hidden, back_rest[number], acc1)

        real = (row >= 0)[:, None]
        at = x + row.to(tl.int64)[:, None] * C
        tl.store(at + c[None, :], acc0.to(x.dtype.element_ty), mask=real)
        total = tl.sum(acc0, 1)
        squares = tl.sum(acc0 * acc0, 1)
        if REST:
            tl.store(at + r[None, :], acc1.to(x.dtype.element_ty), mask=real)
            total += tl.sum(acc1, 1)
            squares += tl.sum(acc1 * acc1, 1)
        store_sums(sums, row, row >= 0, total, squares, C, SLOTS)
        row = following
        following = after
        x0 = next0
        x1 = next1


def held_feed_forward(x: Tensor, first: Weights, second: Weights, rows: Rows, sums: Tensor, tile: Tile) -> None:
    """What `feed_forward` does, where `holds` says that there is room.

    Args:
        tile: of it, `rows`, `columns` (hidden channels at a time, which divide theirs) and `warps` are used.
    """
    channels, hidden = first.weight.shape
    part, rest = parts_of(channels)
    blocks = triton.cdiv(rows.total, tile.rows)
    _held_feed_forward[(min(blocks, multiprocessors(x.device)),)](
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
        blocks,
        C=channels,
        HIDDEN=hidden,
        PART=part,
        REST=rest,
        EPS=first.eps,
        TANH=has_tanh(x),
        BM=tile.rows,
        BH=tile.columns,
        SLOTS=triton.next_power_of_2(slots(channels)),
        **launch_options(x),
        num_warps=tile.warps,
        num_stages=1,
    )


def holds(x: Tensor, first: Weights, tile: Tile) -> bool:
    """Whether the device has room for all weights and for a block of rows."""
    channels, hidden = first.weight.shape
    return (2 * channels * hidden + tile.rows * channels) * x.element_size() + SPARE <= shared_memory(x.device)


held_feed_forward_reference = feed_forward_reference
