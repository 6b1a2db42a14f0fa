"""RoIAlign over all levels of a pyramid in one kernel, forward and backward, on maps whose channels lie together.

Each output cell is the mean of bilinear samples, and bilinear weights are products of one in y and one in x. So a cell
is a weighted sum over the few map cells that its samples touch, each read (or, backward, added to) once, where the
usual kernel goes four times per sample: for 4 x 4 samples 25 accesses instead of 64, and whole rows of channels each.

Needs Triton; what decides whether to import this is `roi_features`.

R boxes, L levels, C channels, h w cells of an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def roi_align_levels(
    levels: Sequence[Tensor],
    rois: Tensor,
    level_of: Tensor,
    size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Features of each box from its own level.

    Args:
        levels: maps `(B, C, H, W)` of one dtype; best with channels last in memory.
        rois: `(R, 5)`, index of the image and box in pixels.
        level_of: `(R,)`, the level of each box.
        size: height and width of the result.
        scales: cells per pixel of each level.
        sampling_ratio, aligned: as `torchvision.ops.roi_align`.

    Returns:
        `(R, C, h, w)` with channels last in memory.
    """
    result: Tensor = _RoIAlign.apply(rois, level_of, size, tuple(scales), sampling_ratio, aligned, *levels)  # type: ignore[no-untyped-call]
    return result


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rois: Tensor,
        level_of: Tensor,
        size: tuple[int, int],
        scales: tuple[float, ...],
        sampling_ratio: int,
        aligned: bool,
        *levels: Tensor,
    ) -> Tensor:
        maps = [level.permute(0, 2, 3, 1).contiguous() for level in levels]
        rois, level_of = rois.detach().float().contiguous(), level_of.int()
        out = maps[0].new_empty(len(rois), *size, maps[0].shape[-1])
        ctx.save_for_backward(rois, level_of)
        ctx.rules = (size, scales, sampling_ratio, aligned)
        ctx.shapes = [each.shape for each in maps]
        ctx.dtype = maps[0].dtype
        # Where each level begins, counted from the first one: one address reaches all.
        starts = [(each.data_ptr() - maps[0].data_ptr()) // each.element_size() for each in maps]
        _launch(False, maps[0], out, rois, level_of, starts, ctx)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rois, level_of = ctx.saved_tensors
        gradient = gradients[0].permute(0, 2, 3, 1).contiguous()
        counts = [shape.numel() for shape in ctx.shapes]
        # Many boxes add to one cell: in float32, as bfloat16 would lose most of the small ones.
        sums = torch.zeros(sum(counts), device=gradient.device, dtype=torch.float32)
        starts = [sum(counts[:i]) for i in range(len(counts))]
        _launch(True, sums, gradient, rois, level_of, starts, ctx)
        found = (
            part.view(shape).permute(0, 3, 1, 2).to(ctx.dtype)
            for part, shape in zip(torch.split(sums, counts), ctx.shapes, strict=True)
        )
        return None, None, None, None, None, None, *found


def _launch(
    backward: bool, maps: Tensor, cells: Tensor, rois: Tensor, level_of: Tensor, starts: list[int], ctx: Any
) -> None:
    if not len(rois):
        return
    (height, width), scales, sampling_ratio, aligned = ctx.rules
    channels = cells.shape[-1]
    places = torch.tensor(
        [(start, shape[1], shape[2]) for start, shape in zip(starts, ctx.shapes, strict=True)], dtype=torch.int64
    ).to(cells.device, non_blocking=True)
    factors = torch.tensor(scales, dtype=torch.float32).to(cells.device, non_blocking=True)
    block = min(256, triton.next_power_of_2(channels))
    _kernel[(len(rois) * height * width, triton.cdiv(channels, block))](
        maps,
        cells,
        rois,
        level_of,
        places,
        factors,
        channels,
        height,
        width,
        sampling_ratio,
        aligned,
        backward,
        block,
        num_warps=1,
    )


@triton.jit
def _span(start, step, samples, last):  # type: ignore[no-untyped-def]
    """First and last map cell that samples of an output cell touch, along one axis."""
    first = tl.minimum(tl.maximum(start, 0.0), last)
    final = tl.minimum(tl.maximum(start + (samples - 1) * step, 0.0), last)
    return tl.floor(first).to(tl.int32), tl.minimum(tl.floor(final) + 1.0, last).to(tl.int32)


@triton.jit
def _weight(start, step, samples, cell, last):  # type: ignore[no-untyped-def]
    """Sum of the samples' bilinear weights on a map cell, along one axis. Samples beyond the map weigh nothing."""
    total = start * 0.0
    i = samples * 0
    while i < samples:
        at = start + i * step
        near = tl.minimum(tl.maximum(at, 0.0), last)
        share = tl.maximum(1.0 - tl.abs(near - cell), 0.0)
        total += tl.where((at >= -1.0) & (at <= last + 1.0), share, 0.0)
        i += 1
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    maps,
    cells,
    rois,
    level_of,
    places,
    factors,
    channels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One output cell of one box, for a block of channels."""
    program = tl.program_id(0).to(tl.int64)
    box = program // (HEIGHT * WIDTH)
    row = ((program // WIDTH) % HEIGHT).to(tl.float32)
    column = (program % WIDTH).to(tl.float32)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    level = tl.load(level_of + box)
    start = tl.load(places + level * 3)
    map_height = tl.load(places + level * 3 + 1)
    map_width = tl.load(places + level * 3 + 2)
    scale = tl.load(factors + level)
    image = tl.load(rois + box * 5).to(tl.int64)
    shift = 0.5 if ALIGNED else 0.0
    x1 = tl.load(rois + box * 5 + 1) * scale - shift
    y1 = tl.load(rois + box * 5 + 2) * scale - shift
    box_width = tl.load(rois + box * 5 + 3) * scale - shift - x1
    box_height = tl.load(rois + box * 5 + 4) * scale - shift - y1
    if not ALIGNED:
        box_width = tl.maximum(box_width, 1.0)
        box_height = tl.maximum(box_height, 1.0)
    cell_height = box_height / HEIGHT
    cell_width = box_width / WIDTH
    if SAMPLING > 0:
        down = SAMPLING + box_height * 0
        across = SAMPLING + box_width * 0
    else:
        down = tl.ceil(cell_height)
        across = tl.ceil(cell_width)
    step_y = cell_height / tl.maximum(down, 1.0)
    step_x = cell_width / tl.maximum(across, 1.0)
    first_y = y1 + row * cell_height + 0.5 * step_y
    first_x = x1 + column * cell_width + 0.5 * step_x
    last_y = (map_height - 1).to(tl.float32)
    last_x = (map_width - 1).to(tl.float32)
    top, bottom = _span(first_y, step_y, down, last_y)
    left, right = _span(first_x, step_x, across, last_x)
    count = tl.maximum(down * across, 1.0)
    own = cells + program * channels + channel
    base = maps + start + image * map_height * map_width * channels + channel
    if BACKWARD:
        gradient = tl.load(own, mask=inside, other=0.0).to(tl.float32) / count
    else:
        total = tl.zeros((BLOCK,), tl.float32)
    x = left
    while x <= right:
        weight_x = _weight(first_x, step_x, across, x.to(tl.float32), last_x)
        y = top
        while y <= bottom:
            share = weight_x * _weight(first_y, step_y, down, y.to(tl.float32), last_y)
            place = base + (y * map_width + x) * channels
            if BACKWARD:
                tl.atomic_add(place, gradient * share, mask=inside, sem="relaxed")
            else:
                total += share * tl.load(place, mask=inside, other=0.0).to(tl.float32)
            y += 1
        x += 1
    if not BACKWARD:
        tl.store(own, (total / count).to(cells.dtype.element_ty), mask=inside)
