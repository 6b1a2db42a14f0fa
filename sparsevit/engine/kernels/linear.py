"""A linear layer on rows that lie anywhere: gathered on the way in, added to a residual and scattered on the way out.

M rows, K channels in, N channels out, R rows of the token buffer. A row's mean and deviation come from its sums, which
were found before: finding them here would repeat that work in every column of blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sparsevit.engine.kernels.dependent import begin, launch_options, prefetch, prefetch_own
from sparsevit.engine.kernels.device import shared_memory
from sparsevit.engine.kernels.epilogue import finish, read_residual, start
from sparsevit.engine.kernels.folded import Weights, normed_product
from sparsevit.engine.kernels.gelu import has_tanh
from sparsevit.engine.kernels.maps import blocks, has_maps, out_blocks, parameters, prefetch_map, weight_blocks
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.sums import SLOT, add_up, load_each, sums_of
from sparsevit.engine.tuning import Tile


@triton.jit(do_not_specialize=["rows", "per_image", "stride", "settled"])
def _linear(
    x,
    weight,
    bias,
    padding,
    column_sums,
    sums,
    table,
    residual,
    out,
    x_blocks,
    weight_blocks,
    rest_blocks,
    out_blocks,
    out_rest_blocks,
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
    ADDS: tl.constexpr,
    ADDS_GATHERED: tl.constexpr,
    SCATTERED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    REST: tl.constexpr,
    BK: tl.constexpr,
    EARLY: tl.constexpr,
    MAPS: tl.constexpr,
    X_MAP: tl.constexpr,
    WEIGHT_MAP: tl.constexpr,
    REST_MAP: tl.constexpr,
    OUT_MAP: tl.constexpr,
    OUT_REST_MAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    prefetch_map(X_MAP, DEPENDENT)
    prefetch_map(WEIGHT_MAP, DEPENDENT)
    prefetch_map(REST_MAP, DEPENDENT)
    prefetch_map(OUT_MAP, DEPENDENT)
    prefetch_map(OUT_REST_MAP, DEPENDENT)
    columns: tl.constexpr = (N + BN + REST - 1) // (BN + REST)
    first = tl.program_id(0) % columns * (BN + REST)
    first_row = tl.program_id(0) // columns * BM
    m = first_row + tl.arange(0, BM)
    inside = m < rows
    real = inside
    row = m
    if GATHERED or ADDS_GATHERED or SCATTERED:
        image = m // per_image
        listed = table + image * stride + (m - image * per_image)
        row = tl.load(listed, mask=inside & (settled != 0), other=-1, cache_modifier=".cg")
        real = row >= 0
    prefetch(weight, K * N, DEPENDENT)
    prefetch_own(bias, first, BN + REST, N, DEPENDENT)
    if NORM:
        prefetch_own(column_sums, first, BN + REST, N, DEPENDENT)
    at = row if ADDS_GATHERED else m
    there = real if ADDS_GATHERED else inside
    n = first + tl.arange(0, BN)
    acc = start(n, bias, N, ADDS, BM, BN)
    added = 0.0
    if ADDS and EARLY:  # asked for now, added after the products, which so need not wait for it
        added = read_residual(residual, at, there, n, N)
    if REST:
        n_rest = first + BN + tl.arange(0, REST)
        rest = start(n_rest, bias, N, ADDS, BM, REST)
        added_rest = 0.0
        if ADDS and EARLY:
            added_rest = read_residual(residual, at, there, n_rest, N)
    begin(DEPENDENT)
    if GATHERED:
        row = tl.where(settled != 0, row, tl.load(listed, mask=inside & (settled == 0), other=-1))
        real = row >= 0
    source = row if GATHERED else m
    valid = real if GATHERED else inside
    if NORM:  # asked for before the products, needed after
        of_slots = load_each(sums, source, valid, K)

    k = tl.arange(0, BK)
    read_x = x + source.to(tl.int64)[:, None] * K + k[None, :]
    read_weight = weight + k[:, None] * N + n[None, :]
    if REST:
        read_rest = weight + k[:, None] * N + n_rest[None, :]
    for step in range(K // BK):
        if MAPS and not GATHERED:
            a = x_blocks.load([first_row, step * BK])
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
        total, squares = add_up(of_slots)
    to = row if SCATTERED else m
    kept = real if SCATTERED else inside
    STORES: tl.constexpr = MAPS and not SCATTERED
    finish(
        acc, added, first, residual, at, there, to, kept, real, total, squares, bias, padding, column_sums, sums, out,
        out_blocks, first_row, N, K, NORM, EPS, PADS_AFTER, GELU, TANH, ADDS, EARLY, STORES, BM, BN,
    )  # fmt: skip
    if REST:
        finish(
            rest, added_rest, first + BN, residual, at, there, to, kept, real, total, squares, bias, padding,
            column_sums, sums, out, out_rest_blocks, first_row, N, K, NORM, EPS, PADS_AFTER, GELU, TANH, ADDS, EARLY,
            STORES, BM, REST,
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
    residual: Tensor | None = None,
    residual_source: Rows | None = None,
    target: Rows | None = None,
    sums: Tensor | None = None,
    activate: bool = False,
    settled: bool = True,
) -> None:
    """Norm (where the weights have one), linear layer and GELU (if `activate`) of rows, or added to a residual.

    What is given as rows, by `source` and the like, is the token buffer, R rows; else it is compact, M rows.

    Args:
        x: shape `(M, K)`, or with `source` `(R, K)`.
        out: shape `(M, N)`, or with `target` `(R, N)`.
        residual: what results are added to, shape `(M, N)`, or with `residual_source` `(R, N)`.
        sums: of the rows of `x`, read for a norm, or of those of `out`, written where results are added; shape
            `(M, S, 2)` or `(R, S, 2)`, float32.
        settled: whether the table of rows is older than the kernel launched before. With a residual it must be, and so
            must the residual.
    """
    selected = source or residual_source or target
    rows = selected.total if selected else x.shape[0]
    k, n = weights.weight.shape
    adds = residual is not None
    assert sums is not None or (weights.eps is None and not adds)
    assert not adds or (source is None and weights.eps is None and not activate and settled)
    assert target is None or adds
    assert tile.columns >= min(SLOT, n)
    assert not adds or tile.columns % SLOT == 0 or tile.columns >= n
    maps = tile.maps and has_maps(x)
    x_blocks = blocks(x, tile.rows, tile.depth) if maps and source is None else x
    of_weight = weight_blocks(weights.weight, tile, maps)
    of_out = out_blocks(out, tile) if maps and target is None else (out, out)
    x_map, weight_map, rest_map, out_map, out_rest_map = parameters("_linear", 9, x_blocks, *of_weight, *of_out)
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(n, tile.columns),)
    _linear[grid](
        x,
        weights.weight,
        weights.bias,
        weights.padding,
        weights.column_sums,
        weights.bias if sums is None else sums,
        selected.table if selected else x,
        x if residual is None else residual,
        out,
        x_blocks,
        *of_weight,
        *of_out,
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
        ADDS=adds,
        ADDS_GATHERED=residual_source is not None,
        SCATTERED=target is not None,
        BM=tile.rows,
        BN=tile.power,
        REST=tile.columns - tile.power,
        BK=tile.depth,
        EARLY=adds and tile.early,
        MAPS=maps,
        X_MAP=x_map,
        WEIGHT_MAP=weight_map,
        REST_MAP=rest_map,
        OUT_MAP=out_map,
        OUT_REST_MAP=out_rest_map,
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
    residual: Tensor | None = None,
    residual_source: Rows | None = None,
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
    if residual is not None:
        y = y.to(out.dtype) + (residual_source.gather(residual) if residual_source else residual)
    for values, into in ((y, out), (sums_of(y), sums)) if residual is not None else ((y, out),):
        if into is not None and target is not None:
            target.scatter(into, values)
        elif into is not None:
            into.copy_(values)
