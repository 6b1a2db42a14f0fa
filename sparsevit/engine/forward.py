"""One pass of the backbone through the kernels: what is launched, in which order, on which buffers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from sparsevit.engine.beside import Beside
from sparsevit.engine.choices import Choices, choose
from sparsevit.engine.kernels.attention import attention
from sparsevit.engine.kernels.chained_feed_forward import chained_feed_forward
from sparsevit.engine.kernels.embed import embed
from sparsevit.engine.kernels.feed_forward import feed_forward
from sparsevit.engine.kernels.held_feed_forward import held_feed_forward
from sparsevit.engine.kernels.linear import linear
from sparsevit.engine.kernels.merge import merge
from sparsevit.engine.kernels.norm import norm
from sparsevit.engine.kernels.pair_attention import pair_attention
from sparsevit.engine.kernels.rank import magnitude, rank, score
from sparsevit.engine.kernels.rank_few import FEW, score_and_rank
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.shared_feed_forward import shared_feed_forward
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


def _block(plan: Plan, stage: StagePlan, block: BlockWeights, rows: Rows, *, settled: bool) -> None:
    """Attention and feed-forward network of some rows, in place."""
    choices = choose(stage.x, block, rows.total, rows.total_windows)
    channels, hidden = block.first.weight.shape
    attended = _attend(plan, stage, block, rows, choices, settled=settled)
    if choices.feed_forward is not None:
        linear(
            attended, block.projection, stage.x, choices.projection,
            residual=stage.x, residual_source=rows, target=rows, sums=stage.sums,
        )  # fmt: skip
        run = held_feed_forward if choices.held else feed_forward
        run(stage.x, block.first, block.second, rows, stage.sums, choices.feed_forward)
        return
    between, sums = plan.compact(2, rows.total, channels), plan.compact_sums(rows.total, channels)
    linear(attended, block.projection, between, choices.projection, residual=stage.x, residual_source=rows, sums=sums)
    rest: dict[str, Any] = {"target": rows, "between_sums": sums, "sums": stage.sums}
    if choices.chained:
        chained_feed_forward(between, block.first, block.second, stage.x, **rest)
        return
    if choices.shared:
        assert plan.exchange is not None
        shared_feed_forward(between, block.first, block.second, stage.x, plan.exchange, **rest)
        return
    assert choices.first is not None
    assert choices.second is not None
    inner = plan.compact(0, rows.total, hidden)
    linear(between, block.first, inner, choices.first, sums=sums, activate=True)
    linear(inner, block.second, stage.x, choices.second, residual=between, target=rows, sums=stage.sums)


def _attend(
    plan: Plan, stage: StagePlan, block: BlockWeights, rows: Rows, choices: Choices, *, settled: bool
) -> Tensor:
    """Output of attention before its projection, compact."""
    channels = stage.x.shape[1]
    attended = plan.compact(1, rows.total, channels)
    shape: dict[str, Any] = {"window": plan.shape.window, "grid": stage.grid}
    if choices.windows is not None:
        window_attention(stage.x, block.qkv, block.logits, rows, stage.sums, attended, choices.windows, **shape)
        return attended
    if choices.pairs is not None:
        pair_attention(
            stage.x, block.qkv, block.logits, rows, stage.sums, attended, choices.pairs, settled=settled, **shape
        )
        return attended
    assert choices.qkv is not None
    assert choices.attention is not None
    qkv = plan.compact(0, rows.total, 3 * channels)
    linear(stage.x, block.qkv, qkv, choices.qkv, source=rows, sums=stage.sums, settled=settled)
    programs, stages = choices.attention
    attention(qkv, block.logits, rows, attended, programs=programs, stages=stages, **shape)
    return attended
