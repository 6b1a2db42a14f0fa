"""A linear layer on rows that lie anywhere: gathered on the way in, added to their own rows on the way out.

M rows, K channels in, N channels out, R rows of the token buffer. Norms are folded: the norm's scale into the weight,
its shift into the bias. A row's mean and deviation come from its sums, which were found before: finding them here would
repeat that work in every column of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.dependent import begin, launch_options, prefetch
from sparsevit.engine.kernels.device import shared_memory
from sparsevit.engine.kernels.gelu import gelu, has_tanh
from sparsevit.engine.kernels.maps import blocks, has_maps, weight_blocks
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import SLOT, load_slots, slots, store_block_sums, sums_of
from sparsevit.engine.tuning import Tile


@dataclass(frozen=True, eq=False)
class Weights:
    """A linear layer and the norm before it, folded into it.

    weight: shape `(K, N)`, times the norm's scale.
    bias: shape `(N,)`, float32, with the norm's shift put through the layer.
    padding: what the layer makes of padding, shape `(N,)`, float32: `bias`, unless padding follows the norm.
    column_sums: of `weight`, shape `(N,)`, float32.
    eps: the norm's; None where there is no norm.
    """

    weight: Tensor
    bias: Tensor
    padding: Tensor
    column_sums: Tensor
    eps: float | None = None

    @property
    def pads_after_norm(self) -> bool:
        """Whether padding needs another bias."""
        return self.padding is not self.bias


@triton.jit
def normed(acc, total, squares, of_columns, K: tl.constexpr, EPS: tl.constexpr):
    """Columns of a product of normed rows, from `acc`, that of the rows as they are, and the sums of both."""
    mean = total / K
    deviation = tl.rsqrt(tl.maximum(squares / K - mean * mean, 0.0) + EPS)
    return deviation[:, None] * (acc - mean[:, None] * of_columns[None, :])


@triton.jit
def _finish(
    acc,
    first,
    before,
    row,
    m,
    inside,
    real,
    total,
    squares,
    bias,
    padding,
    column_sums,
    sums,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    PADS_AFTER: tl.constexpr,
    GELU: tl.constexpr,
    TANH: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """From sums of products to what is stored, for BN columns from `first` on."""
    n = first + tl.arange(0, BN)
    if NORM:
        of_columns = tl.load(column_sums + n, mask=n < N, other=0.0)
        acc = normed(acc, total, squares, of_columns, K, EPS)
    shift = tl.load(bias + n, mask=n < N, other=0.0)
    if PADS_AFTER:
        other = tl.load(padding + n, mask=n < N, other=0.0)
        acc += tl.where(real[:, None], shift[None, :], other[None, :])
    else:
        acc += shift[None, :]
    if GELU:
        acc = gelu(acc, TANH)
    to = row if ADD else m
    mask = (real if ADD else inside)[:, None] & (n[None, :] < N)
    place = out + to.to(tl.int64)[:, None] * N + n[None, :]
    if ADD:
        if not EARLY:
            before = tl.load(place, mask=mask, other=0.0)
        acc += before.to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)
    if ADD:
        store_block_sums(sums, row, real, acc, first, N, BM, BN)


@triton.jit(do_not_specialize=["rows", "per_image", "stride", "settled"])
def _linear(
    x,
    weight,
    bias,
    padding,
    column_sums,
    sums,
    table,
    out,
    x_blocks,
    weight_blocks,
    rest_blocks,
    rows,
    per_image,
    stride,
    settled,
    N: tl.constexpr,
    K: tl.constexpr,
    GATHERED: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    PADS_AFTER: tl.constexpr,
    GELU: tl.constexpr,
    TANH: tl.constexpr,
    ADD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    REST: tl.constexpr,
    BK: tl.constexpr,
    SLOTS: tl.constexpr,
    EARLY: tl.constexpr,
    MAPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    columns: tl.constexpr = (N + BN + REST - 1) // (BN + REST)
    first = tl.program_id(0) % columns * (BN + REST)
    m = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    n = first + tl.arange(0, BN)
    inside = m < rows
    real = inside
    row = m
    if GATHERED or ADD:
        image = m // per_image
        listed = table + image * stride + (m - image * per_image)
        row = tl.load(listed, mask=inside & (settled != 0), other=-1, cache_modifier=".cg")
        real = row >= 0
    prefetch(weight, K * N, DEPENDENT)
    before = row
    before_rest = row
    if EARLY:
        place = out + row.to(tl.int64)[:, None] * N + n[None, :]
        before = tl.load(place, mask=real[:, None] & (n[None, :] < N), other=0.0, cache_modifier=".cg")
        if REST:
            beyond = first + BN + tl.arange(0, REST)
            place = out + row.to(tl.int64)[:, None] * N + beyond[None, :]
            before_rest = tl.load(place, mask=real[:, None] & (beyond[None, :] < N), other=0.0, cache_modifier=".cg")
    begin(DEPENDENT)
    if GATHERED:
        row = tl.where(settled != 0, row, tl.load(listed, mask=inside & (settled == 0), other=-1))
        real = row >= 0
    if NORM:  # asked for before the products, needed after
        of_slots, squares_of_slots = load_slots(sums, row, real, K, SLOTS)

    k = tl.arange(0, BK)
    source = row if GATHERED else m
    valid = real if GATHERED else inside
    read_x = x + source.to(tl.int64)[:, None] * K + k[None, :]
    read_weight = weight + k[:, None] * N + n[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    if REST:
        n_rest = first + BN + tl.arange(0, REST)
        read_rest = weight + k[:, None] * N + n_rest[None, :]
        rest = tl.zeros((BM, REST), tl.float32)
    for step in range(K // BK):
        if MAPS and not GATHERED:
            a = x_blocks.load([tl.program_id(0) // columns * BM, step * BK])
        else:
            a = tl.load(read_x + step * BK, mask=valid[:, None], other=0.0)
        if MAPS:
            b = weight_blocks.load([step * BK, first])
        else:
            b = tl.load(read_weight + step * BK * N, mask=n[None, :] < N, other=0.0)
        if REST:
            if MAPS:
                c = rest_blocks.load([step * BK, first + BN])
            else:
                c = tl.load(read_rest + step * BK * N, mask=n_rest[None, :] < N, other=0.0)
        acc = tl.dot(a, b, acc)
        if REST:
            rest = tl.dot(a, c, rest)

    total = 0.0
    squares = 0.0
    if NORM:
        total = tl.sum(of_slots, 1)
        squares = tl.sum(squares_of_slots, 1)
    _finish(
        acc, first, before, row, m, inside, real, total, squares, bias, padding, column_sums, sums, out,
        N, K, NORM, EPS, PADS_AFTER, GELU, TANH, ADD, EARLY, BM, BN,
    )  # fmt: skip
    if REST:
        _finish(
            rest, first + BN, before_rest, row, m, inside, real, total, squares, bias, padding, column_sums, sums, out,
            N, K, NORM, EPS, PADS_AFTER, GELU, TANH, ADD, EARLY, BM, REST,
        )  # fmt: skip


def pipeline(tile: Tile, x: Tensor) -> int:
    """Stages of a product's pipeline, of a step of rows and one of columns each, for which the device has room."""
    step = (tile.rows + tile.columns) * tile.depth * x.element_size()
    return tile.within(shared_memory(x.device), step)


def linear(
    x: Tensor,
    weights: Weights,
    out: Tensor,
    tile: Tile,
    *,
    source: Rows | None = None,
    target: Rows | None = None,
    sums: Tensor | None = None,
    activate: bool = False,
    settled: bool = True,
) -> None:
    """Norm (where the weights have one), linear layer and GELU (if `activate`) of rows.

    Args:
        x: compact rows, shape `(M, K)`, or with `source` the token buffer `(R, K)`.
        out: compact rows, shape `(M, N)`, or with `target` the token buffer `(R, N)`, to whose rows results are added.
        source, target: rows of the token buffer to read or to add to.
        sums: of the token buffer's rows, shape `(R, S, 2)`, float32: read for a norm, written where results are added.
        settled: whether the table of rows is older than the kernel launched before. With `target` it must be, and so
            must be the rows to which results are added.
    """
    selected = source or target
    rows = selected.total if selected else x.shape[0]
    k, n = weights.weight.shape
    assert sums is not None or (weights.eps is None and target is None)
    assert tile.columns >= min(SLOT, n)
    assert target is None or tile.columns % SLOT == 0 or tile.columns >= n
    assert settled or target is None
    maps = tile.maps and has_maps(x)
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(n, tile.columns),)
    _linear[grid](
        x,
        weights.weight,
        weights.bias,
        weights.padding,
        weights.column_sums,
        weights.bias if sums is None else sums,
        selected.table if selected else x,
        out,
        blocks(x, tile.rows, tile.depth) if maps and source is None else x,
        *weight_blocks(weights.weight, tile, maps),
        rows,
        selected.per_image if selected else rows,
        selected.table.shape[1] if selected else 0,
        int(settled),
        N=n,
        K=k,
        GATHERED=source is not None,
        NORM=weights.eps is not None,
        EPS=weights.eps or 0.0,
        PADS_AFTER=source is not None and weights.pads_after_norm,
        GELU=activate,
        TANH=has_tanh(x),
        ADD=target is not None,
        BM=tile.rows,
        BN=tile.power,
        REST=tile.columns - tile.power,
        BK=tile.depth,
        SLOTS=triton.next_power_of_2(slots(k)),
        EARLY=target is not None and tile.early,
        MAPS=maps,
        **launch_options(x),
        num_warps=tile.warps,
        num_stages=pipeline(tile, x),
        maxnreg=tile.registers,
    )


def linear_reference(
    x: Tensor,
    weights: Weights,
    out: Tensor,
    tile: Tile,
    *,
    source: Rows | None = None,
    target: Rows | None = None,
    sums: Tensor | None = None,
    activate: bool = False,
    settled: bool = True,
) -> None:
    """What `linear` computes, in plain PyTorch and the precision of `x`."""
    rows = source.gather(x) if source else x
    y = normed_product(rows, weights)
    if source is not None and weights.pads_after_norm:
        y[source.flat() < 0] = weights.padding.to(y.dtype)
    if activate:
        y = F.gelu(y)
    if target is None:
        out.copy_(y)
    else:
        after = target.gather(out) + y.to(out.dtype)
        target.scatter(out, after)
        if sums is not None:
            target.scatter(sums, sums_of(after))


def normed_product(rows: Tensor, weights: Weights) -> Tensor:
    """Norm, where the weights have one, and linear layer of rows, in their precision."""
    if weights.eps is not None:
        rows = F.layer_norm(rows, rows.shape[1:], eps=weights.eps)
    return rows @ weights.weight.to(rows.dtype) + weights.bias.to(rows.dtype)
