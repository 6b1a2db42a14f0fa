"""Buffers and window tables for one batch and image size, allocated once: no pass allocates anything.

B batch, H W height and width in tokens, T tokens of a map, C channels, N tokens in a window, W windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsevit.engine.kernels.merge import joined_channels
from sparsevit.engine.kernels.rows import Rows
from sparsevit.engine.kernels.shared_feed_forward import Exchange, make_exchange, shares
from sparsevit.engine.kernels.sums import slots
from sparsevit.engine.tuning import Tile, merge_tile
from sparsevit.engine.weights import BackboneWeights, StageWeights
from sparsevit.model.windows import window_table


@dataclass(frozen=True, eq=False)
class Shape:
    """What a plan is for: images `(batch, colours, *size)`, size in pixels."""

    batch: int
    size: tuple[int, int]
    patch: int
    window: int


@dataclass(frozen=True, eq=False)
class StagePlan:
    """Buffers of a stage. Both partitions of its map, plain and shifted, lie one after the other.

    size: H and W; grid: rows and columns of windows.
    x: token buffer, shape `(B * T, C)`; sums: of its rows, shape `(B * T, S, 2)`, float32, see `kernels/sums.py`.
    out: normed output, shape `(B * T, C)`, if the stage has one.
    places: token of each window position, shape `(2, W, N)`, int32; -1 where it is padding.
    dense: all windows in their own order, by partition.
    ranked, table: windows by rank and their rows, shapes `(2, B, W)` and `(2, B, W * N)`, int32.
    magnitudes, scores: of tokens, by slot, `(S, B * T)`, and of windows `(2, B, W)`, float32.
    merging: block sizes of the merging after it, if there is one.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    x: Tensor
    sums: Tensor
    out: Tensor | None
    places: Tensor
    dense: tuple[Rows, Rows]
    ranked: Tensor
    table: Tensor
    magnitudes: Tensor
    scores: Tensor
    merging: Tile | None

    @property
    def windows(self) -> int:
        """Windows of an image, W."""
        return self.places.shape[1]

    def rows(self, partition: int, kept: int) -> Rows:
        """The rows of the `kept` most active windows of each image, or of all in their own order."""
        if kept == self.windows:
            return self.dense[partition]
        return Rows(self.table[partition], self.ranked[partition], kept)

    def map(self, batch: int) -> Tensor:
        """The output as `(B, C, H, W)`, in channels-last memory."""
        assert self.out is not None
        return self.out.view(batch, *self.size, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Plan:
    """All buffers.

    scratch: compact rows inside a block, in regions that no stage outgrows: queries, keys and values or hidden
        channels; attention's output; rows between attention and the feed-forward network.
    scratch_sums: of those last rows, float32.
    exchange: of the shared feed-forward network, where the device runs it for a stage.
    """

    shape: Shape
    stages: tuple[StagePlan, ...]
    position: Tensor | None
    scratch: tuple[Tensor, Tensor, Tensor]
    scratch_sums: Tensor
    exchange: Exchange | None

    def compact(self, which: int, rows: int, channels: int) -> Tensor:
        """A region of scratch as `(rows, channels)`."""
        return self.scratch[which][: rows * channels].view(rows, channels)

    def compact_sums(self, rows: int, channels: int) -> Tensor:
        """Of the rows in the last region of scratch, `(rows, S, 2)`."""
        return self.scratch_sums[: rows * slots(channels) * 2].view(rows, slots(channels), 2)


@torch.no_grad()
def make_plan(shape: Shape, weights: BackboneWeights, dtype: torch.dtype, device: torch.device) -> Plan:
    """Allocate everything for images of this shape."""
    size = (math.ceil(shape.size[0] / shape.patch), math.ceil(shape.size[1] / shape.patch))
    position = None
    if weights.position is not None:
        position = torch.nn.functional.interpolate(weights.position, size=size, mode="bicubic", align_corners=False)
        position = position.flatten(2).transpose(1, 2)[0].contiguous()
    stages, wide, narrow, of_sums = [], 0, 0, 0
    parts = 1  # in which whoever writes a stage's first rows has their channels
    for stage in weights.stages:
        plan = _stage(shape, size, stage, parts, dtype, device)
        stages.append(plan)
        if plan.merging is not None and stage.merging is not None:
            parts = math.ceil(stage.merging.weight.shape[1] / plan.merging.columns)
        hidden = stage.blocks[0].first.weight.shape[1]
        wide = max(wide, plan.dense[0].total * max(3 * stage.channels, hidden))
        narrow = max(narrow, plan.dense[0].total * stage.channels)
        of_sums = max(of_sums, plan.dense[0].total * slots(stage.channels) * 2)
        size = (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    qkv, attended, between = (torch.empty(length, dtype=dtype, device=device) for length in (wide, narrow, narrow))
    scratch_sums = torch.empty(of_sums, dtype=torch.float32, device=device)
    shared = any(shares(plan.x, stage.blocks[0].first) for plan, stage in zip(stages, weights.stages, strict=True))
    exchange = make_exchange(device) if shared else None
    return Plan(shape, tuple(stages), position, (qkv, attended, between), scratch_sums, exchange)


def _stage(
    shape: Shape, size: tuple[int, int], weights: StageWeights, parts: int, dtype: torch.dtype, device: torch.device
) -> StagePlan:
    batch, tokens, channels = shape.batch, size[0] * size[1], weights.channels
    grid = (math.ceil(size[0] / shape.window), math.ceil(size[1] / shape.window))
    tables = [window_table(*size, shape.window, shift, device) for shift in (0, shape.window // 2)]
    places = torch.stack([torch.where(table.index < tokens, table.index, -1) for table in tables])
    windows, per_window = places.shape[1:]
    image = torch.arange(batch, device=device).view(-1, 1, 1)
    order = torch.arange(windows, device=device, dtype=torch.int32).repeat(batch, 1)
    dense = [torch.where(place >= 0, image * tokens + place, -1).flatten(1).int() for place in places]

    def empty(*dimensions: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*dimensions, dtype=dtype, device=device)

    merging = None
    if weights.merging is not None:
        joined = batch * math.ceil(size[0] / 2) * math.ceil(size[1] / 2)
        merging = merge_tile(joined, weights.merging.weight.shape[1], joined_channels(size, channels))
    return StagePlan(
        size=size,
        grid=grid,
        x=empty(batch * tokens, channels, dtype=dtype),
        sums=empty(batch * tokens, slots(channels), 2, dtype=torch.float32),
        out=None if weights.norm is None else empty(batch * tokens, channels, dtype=dtype),
        places=places.int().contiguous(),
        dense=(Rows(dense[0], order, windows), Rows(dense[1], order, windows)),
        ranked=empty(2, batch, windows, dtype=torch.int32),
        table=empty(2, batch, windows * per_window, dtype=torch.int32),
        magnitudes=empty(parts, batch * tokens, dtype=torch.float32),
        scores=empty(2, batch, windows, dtype=torch.float32),
        merging=merging,
    )
