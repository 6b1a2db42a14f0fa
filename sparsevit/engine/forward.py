"""One pass of the backbone through the kernels: what is launched, in which order, on which buffers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor

from sparsevit.engine import tuning
from sparsevit.engine.beside import Beside
from sparsevit.engine.kernels.attention import attention
from sparsevit.engine.kernels.embed import embed
from sparsevit.engine.kernels.feed_forward import feed_forward
from sparsevit.engine.kernels.held_feed_forward import held_feed_forward, holds
from sparsevit.engine.kernels.linear import linear
from sparsevit.engine.kernels.merge import merge
from sparsevit.engine.kernels.norm import norm
from sparsevit.engine.kernels.parts import splits
from sparsevit.engine.kernels.rank import magnitude, rank, score
from sparsevit.engine.kernels.rank_few import FEW, score_and_rank
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.window_attention import window_attention
from sparsevit.engine.plan import Plan, StagePlan
from sparsevit.engine.weights import BackboneWeights, BlockWeights


def forward(images: Tensor, plan: Plan, weights: BackboneWeights, kept: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Feature maps `(B, C, H, W)` in the plan's buffers, channels last.

    Args:
        images: shape `(B, colours, height, width)`, contiguous.
        kept: windows that each layer keeps, by stage.
    """
    first = weights.embed
    scale = None if first.norm is None else (first.norm.scale, first.norm.shift, first.norm.eps)
    into = _first_rows(plan.stages[0], kept[0])
    embed(images, first.weight, first.bias, scale, plan.position, plan.shape.patch, *into)
    outs, beside = [], Beside(images.device)
    for number, (stage, of_stage) in enumerate(zip(plan.stages, weights.stages, strict=True)):
        _blocks(plan, stage, of_stage.blocks, kept[number])
        if of_stage.norm is not None:
            assert stage.out is not None
            of = of_stage.norm
            last = number + 1 == len(plan.stages)
            with nullcontext() if last else beside():  # the next stage changes nothing that this reads
                norm(stage.x, of.scale, of.shift, of.eps, stage.out, dependent=last)
            outs.append(stage.map(plan.shape.batch))
        if of_stage.merging is not None:
            following = plan.stages[number + 1]
            into = _first_rows(following, kept[number + 1])
            assert stage.merging is not None
            merge(stage.x, stage.sums, stage.size, of_stage.merging, *into, stage.merging)
    beside.join()
    return tuple(outs)


def _first_rows(stage: StagePlan, kept: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where the rows go that a stage begins with, their sums, and their magnitudes if its first layer is sparse."""
    return stage.x, stage.sums, stage.magnitudes if kept[0] < stage.windows else None


def _blocks(plan: Plan, stage: StagePlan, blocks: Sequence[BlockWeights], kept: Sequence[int]) -> None:
    """All blocks of a stage, in place."""
    ranked = False
    for number, block in enumerate(blocks):
        count = kept[number // 2]
        ranks = count < stage.windows and not ranked
        if ranks:  # once a stage, on the input of its first sparse block
            if number > 0:  # the rows are no longer those that came with their magnitudes
                magnitude(stage.x, stage.magnitudes)
            tokens = stage.size[0] * stage.size[1]
            if stage.windows <= FEW:
                score_and_rank(
                    stage.magnitudes, stage.places, stage.size, stage.scores, stage.ranked, stage.table,
                    window=plan.shape.window,
                )  # fmt: skip
            else:
                score(stage.magnitudes, stage.places, stage.scores)
                rank(stage.scores, stage.places, tokens, stage.ranked, stage.table)
            ranked = True
        rows = stage.rows(number % 2, count)
        _block(plan, stage, block, rows, settled=not ranks)


def fuses_feed_forward(block: BlockWeights) -> bool:
    """Whether the feed-forward network is one kernel, which wants few channels, in parts that are powers of 2."""
    channels, hidden = block.first.weight.shape
    return channels <= tuning.FUSED_FEED_FORWARD and splits(channels) and hidden % tuning.HIDDEN_UNIT == 0


def fuses_attention(block: BlockWeights) -> bool:
    """Whether queries, keys and values never leave the chip, which wants few channels, as `fuses_feed_forward`."""
    channels = block.qkv.weight.shape[0]
    return channels <= tuning.FUSED_ATTENTION and splits(channels)


def _block(plan: Plan, stage: StagePlan, block: BlockWeights, rows: Rows, *, settled: bool) -> None:
    """Attention and feed-forward network of some rows, in place."""
    attended = _attend(plan, stage, block, rows, settled=settled)
    channels, hidden = block.first.weight.shape
    tile = tuning.linear_tile(rows.total, channels, channels, adds=True)
    if fuses_feed_forward(block):
        linear(
            attended, block.projection, stage.x, tile,
            residual=stage.x, residual_source=rows, target=rows, sums=stage.sums,
        )  # fmt: skip
        if tuning.holds_feed_forward(rows.total) and holds(stage.x, block.first, tuning.HELD_FEED_FORWARD):
            tile = tuning.HELD_FEED_FORWARD
            held_feed_forward(stage.x, block.first, block.second, rows, stage.sums, tile)
        else:
            tile = tuning.feed_forward_tile(rows.total, channels)
            feed_forward(stage.x, block.first, block.second, rows, stage.sums, tile)
        return
    between, sums = plan.compact(2, rows.total, channels), plan.compact_sums(rows.total, channels)
    linear(attended, block.projection, between, tile, residual=stage.x, residual_source=rows, sums=sums)
    inner = plan.compact(0, rows.total, hidden)
    tile = tuning.linear_tile(rows.total, hidden, channels, adds=False)
    linear(between, block.first, inner, tile, sums=sums, activate=True)
    tile = tuning.linear_tile(rows.total, channels, hidden, adds=True)
    linear(inner, block.second, stage.x, tile, residual=between, target=rows, sums=stage.sums)


def _attend(plan: Plan, stage: StagePlan, block: BlockWeights, rows: Rows, *, settled: bool) -> Tensor:
    """Output of attention before its projection, compact."""
    channels, heads = stage.x.shape[1], block.logits.shape[1]
    attended = plan.compact(1, rows.total, channels)
    window, grid = plan.shape.window, stage.grid
    if fuses_attention(block):
        choice = tuning.window_choice(rows.total_windows, heads)
        window_attention(stage.x, block.qkv, block.logits, rows, stage.sums, attended, choice, window=window, grid=grid)
        return attended
    qkv = plan.compact(0, rows.total, 3 * channels)
    tile = tuning.linear_tile(rows.total, 3 * channels, channels, adds=False)
    linear(stage.x, block.qkv, qkv, tile, source=rows, sums=stage.sums, settled=settled)
    programs, stages = tuning.attention_choice(rows.total_windows, heads)
    attention(qkv, block.logits, rows, attended, window=window, grid=grid, programs=programs, stages=stages)
    return attended
