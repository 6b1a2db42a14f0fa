"""Instance masks pasted into their images as runs of ones, on the device they lie on: no full-size mask is ever made.

Only the pixels of each box are looked at, all masks at once.

n masks, P pixels of all boxes, R runs of ones (a run ends with its column until runs that touch are joined).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIXELS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Pixels of boxes worked on at once, by device: bounds memory to some hundred bytes for each."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Masks as runs of ones, in COCO's order of pixels: column by column.

    Attributes:
        owner: index of each run's mask, ascending, `(R,)`.
        begin, end: its first pixel and the one behind its last, `(R,)`.
        count: how many masks there are, the empty ones among them.
    """

    owner: Tensor
    begin: Tensor
    end: Tensor
    count: int

    def areas(self) -> Tensor:
        """Pixels of each mask, `(n,)`."""
        areas = torch.zeros(self.count, dtype=torch.long, device=self.owner.device)
        return areas.index_add_(0, self.owner, self.end - self.begin)

    @classmethod
    def joined(cls, parts: Sequence[Runs], device: torch.device) -> Runs:
        """Masks of all parts, one after the other."""
        owner, begin, end = ([torch.zeros(0, dtype=torch.long, device=device)] for _ in range(3))
        count = 0
        for part in parts:
            owner.append(part.owner + count)
            begin.append(part.begin)
            end.append(part.end)
            count += part.count
        return cls(torch.cat(owner), torch.cat(begin), torch.cat(end), count)


def paste_masks(masks: Tensor, boxes: NDArray[np.float32], sizes: NDArray[np.int64], threshold: float) -> Runs:
    """Runs of each mask, stretched over its box by mmdet's bilinear rule and cut off at `threshold`.

    Args:
        masks: probabilities `(n, h, w)`, float32.
        boxes: `(n, 4)` in pixels of the image.
        sizes: height and width of each mask's image, `(n, 2)`.
    """
    height, width = sizes.T
    # mmdet's region on the CPU: a pixel more on each side, which a low threshold can reach.
    first = np.maximum(np.floor(boxes[:, :2]) - 1, 0).astype(np.int64)
    last = np.minimum(np.ceil(boxes[:, 2:]) + 1, np.stack([width, height], 1)).astype(np.int64)
    sides = np.maximum(last - first, 0)
    parts = []
    for part in _parts(sides.prod(axis=1), PIXELS_AT_ONCE.get(masks.device.type, 1 << 20)):
        geometry = np.concatenate([first[part], sides[part], height[part, None]], axis=1)
        parts.append(_paste(masks[part], boxes[part], geometry, threshold))
    return Runs.joined(parts, masks.device)


def _parts(pixels: NDArray[np.int64], most: int) -> list[slice]:
    """Consecutive masks of at most `most` pixels together, at least one at a time."""
    starts, total = [0], 0
    for index, count in enumerate(pixels.tolist()):
        if total and total + count > most:
            starts.append(index)
            total = 0
        total += count
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(pixels)], strict=True)] if len(pixels) else []


def _paste(masks: Tensor, boxes: NDArray[np.float32], geometry: NDArray[np.int64], threshold: float) -> Runs:
    device, count = masks.device, len(masks)
    own = torch.from_numpy(geometry).to(device, non_blocking=True)
    left, top, columns, rows, height = own.unbind(1)
    pixels = geometry[:, 2] * geometry[:, 3]
    starts = torch.from_numpy(np.cumsum(pixels) - pixels).to(device, non_blocking=True)
    total = int(pixels.sum())
    owner = torch.repeat_interleave(torch.arange(count, device=device), columns * rows, output_size=total)
    # Column by column, as COCO counts: the order of a pixel in its box, then its place there and in the image.
    order = torch.arange(total, device=device) - starts[owner]
    high = rows[owner]
    column = torch.div(order, high, rounding_mode="floor")
    row = order - column * high
    x, y = left[owner] + column, top[owner] + row
    ones = _sampled(masks, torch.from_numpy(boxes).to(device), owner, x, y) >= threshold
    before = torch.zeros_like(ones)
    before[1:] = ones[:-1]
    after = torch.zeros_like(ones)
    after[:-1] = ones[1:]
    place = x * height[owner] + y
    begins = ones & ((row == 0) | ~before)
    run_owner, begin = owner[begins], place[begins]
    end = place[ones & ((row == high - 1) | ~after)] + 1
    # Boxes as high as the image: a run goes on at the top of the next column.
    apart = (run_owner[1:] != run_owner[:-1]) | (begin[1:] != end[:-1])
    opens, closes = (torch.ones_like(begin, dtype=torch.bool) for _ in range(2))
    opens[1:], closes[:-1] = apart, apart
    return Runs(run_owner[opens], begin[opens], end[closes], count)


def _sampled(masks: Tensor, boxes: Tensor, owner: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values `(P,)` of the masks at pixels, 0 beyond their edge; `grid_sample` without aligned corners."""
    size_y, size_x = masks.shape[1:]
    box = boxes[owner].float()

    def at(pixel: Tensor, low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
        # A box without extent is given the middle of its mask, as mmdet does.
        relative = ((pixel.float() + 0.5 - low) / (high - low) * 2 - 1).nan_to_num(0.0, 0.0, 0.0)
        cell = ((relative + 1) * size - 1) / 2
        return cell.floor(), cell

    near_x, cell_x = at(x, box[:, 0], box[:, 2], size_x)
    near_y, cell_y = at(y, box[:, 1], box[:, 3], size_y)
    flat, base = masks.reshape(-1), owner * (size_y * size_x)
    total = torch.zeros_like(cell_x)
    for step_y in (0, 1):
        for step_x in (0, 1):
            column, row = near_x + step_x, near_y + step_y
            weight = (1 - (cell_x - column).abs()) * (1 - (cell_y - row).abs())
            inside = (column >= 0) & (column < size_x) & (row >= 0) & (row < size_y)
            index = row.clamp(0, size_y - 1).long() * size_x + column.clamp(0, size_x - 1).long()
            total += torch.where(inside, weight * flat[base + index], 0.0)
    return total
