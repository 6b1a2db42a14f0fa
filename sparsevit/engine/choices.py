"""Which kernels a block runs as and in which block sizes, by how many rows take part; what to compile for all of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from torch import Tensor

from sparsevit.engine import tuning
from sparsevit.engine.kernels.chained_feed_forward import chains
from sparsevit.engine.kernels.held_feed_forward import holds
from sparsevit.engine.kernels.parts import splits
from sparsevit.engine.kernels.shared_feed_forward import shares
from sparsevit.engine.plan import Plan, StagePlan
from sparsevit.engine.tuning import Tile, WindowChoice
from sparsevit.engine.weights import BackboneWeights, BlockWeights


@dataclass(frozen=True)
class Choices:
    """Of a block; what is None is not run.

    windows: attention in one kernel with its queries, keys and values, a head's weights held.
    pairs: the same by pairs of heads; these or `windows` in place of these two:
    qkv: their product.
    attention: about how many programs it starts, and how deep its pipeline is.
    projection: the product after attention.
    feed_forward: the whole network in one kernel, in place of `first` and `second`, its products.
    held: whether that kernel holds its weights.
    chained: whether the network is one kernel on compact rows that hands hidden values on in registers;
    shared: or one whose programs share hidden channels; in place of all these.
    """

    windows: WindowChoice | None
    pairs: Tile | None
    qkv: Tile | None
    attention: tuple[int, int] | None
    projection: Tile
    feed_forward: Tile | None
    held: bool
    chained: bool
    shared: bool
    first: Tile | None
    second: Tile | None

    @property
    def compiled(self) -> Hashable:
        """What its kernels are compiled for: how rows are shared out among programs is told to them."""
        windows = None if self.windows is None else replace(self.windows, each=0)
        attention = None if self.attention is None else (0, self.attention[1])
        return replace(self, windows=windows, attention=attention)


def choose(x: Tensor, block: BlockWeights, rows: int, windows: int) -> Choices:
    """For so many compact rows, of so many windows, of the token buffer `x`."""
    channels, hidden = block.first.weight.shape
    heads = block.logits.shape[1]
    fused = fuses_attention(block)
    chained = tuning.chains_feed_forward(rows) and chains(x, block.first)
    together = not chained and fuses_feed_forward(block, rows)
    pairs = tuning.pair_tile(windows, heads, channels) if not fused and has_pairs(block) else None
    apart = not fused and pairs is None
    held = together and tuning.holds_feed_forward(rows) and holds(x, block.first, tuning.HELD_FEED_FORWARD)
    shared = not chained and not together and tuning.shares_feed_forward(rows) and shares(x, block.first)
    products = not (chained or together or shared)
    alone = tuning.HELD_FEED_FORWARD if held else tuning.feed_forward_tile(rows, channels)
    return Choices(
        windows=tuning.window_choice(windows, heads) if fused else None,
        pairs=pairs,
        qkv=tuning.linear_tile(rows, 3 * channels, channels, adds=False) if apart else None,
        attention=tuning.attention_choice(windows, heads) if apart else None,
        projection=tuning.linear_tile(rows, channels, channels, adds=True),
        feed_forward=alone if together else None,
        held=held,
        chained=chained,
        shared=shared,
        first=tuning.linear_tile(rows, hidden, channels, adds=False) if products else None,
        second=tuning.linear_tile(rows, channels, hidden, adds=True) if products else None,
    )


def fuses_feed_forward(block: BlockWeights, rows: int) -> bool:
    """Whether the feed-forward network is one kernel, which wants few channels, in parts that are powers of 2."""
    channels, hidden = block.first.weight.shape
    return tuning.fuses_feed_forward(rows, channels) and splits(channels) and hidden % tuning.HIDDEN_UNIT == 0


def fuses_attention(block: BlockWeights) -> bool:
    """Whether queries, keys and values never leave the chip, which wants few channels, as `fuses_feed_forward`."""
    channels = block.qkv.weight.shape[0]
    return channels <= tuning.FUSED_ATTENTION and splits(channels)


def has_pairs(block: BlockWeights) -> bool:
    """Whether heads come in pairs, and what a pair attends to finds room in registers: up to 64 tokens, 32 channels."""
    heads, padded = block.logits.shape[1:3]
    channels = block.qkv.weight.shape[0]
    return heads % 2 == 0 and channels // heads in (16, 32) and padded <= 64


def to_compile(plan: Plan, weights: BackboneWeights) -> list[list[tuple[int, ...]]]:
    """Windows that each layer keeps, by stage, in passes that together run every kernel that any sparsity needs.

    The first is dense. In the last, layers after a stage's first are sparse alone, which are ranked anew.
    """
    layers = [-(-len(stage.blocks) // 2) for stage in weights.stages]
    counts = [
        _one_of_each(stage, of_stage.blocks[0]) for stage, of_stage in zip(plan.stages, weights.stages, strict=True)
    ]
    passes = [[(stage.windows,) * number for stage, number in zip(plan.stages, layers, strict=True)]]
    pairs = list(zip(counts, plan.stages, strict=True))
    for turn in range(max(map(len, counts))):
        now = [each[min(turn, len(each) - 1)] if each else stage.windows for each, stage in pairs]
        passes.append([(count,) * number for count, number in zip(now, layers, strict=True)])
    if max(layers) > 1:
        last = [max(1, stage.windows - 1) for stage in plan.stages]
        passes.append(
            [
                (stage.windows, *(count,) * (number - 1))
                for stage, count, number in zip(plan.stages, last, layers, strict=True)
            ]
        )
    return passes


def _one_of_each(stage: StagePlan, block: BlockWeights) -> list[int]:
    """Counts of kept windows below all, one for each way of compiling that they need."""
    images, tokens = stage.ranked.shape[1], stage.places.shape[2]
    found: dict[Hashable, int] = {}
    for count in range(stage.windows - 1, 0, -1):
        choices = choose(stage.x, block, images * count * tokens, images * count)
        found.setdefault(choices.compiled, count)
    return list(found.values())
