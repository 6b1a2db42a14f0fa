"""Instance masks pasted and run-length encoded on the device they lie on: no full-size mask is ever made.

Only the pixels of each box are looked at, all masks at once, and what goes to the host is COCO's compressed text.

n masks, P pixels of all boxes, R runs of ones (a run ends with its column until runs that touch are joined).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIXELS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Pixels of boxes worked on at once, by device: bounds memory to some hundred bytes for each."""

_DIGITS = 7  # of five bits, which hold any difference between runs of an image of 2**33 pixels


def encode_masks(
    masks: Tensor, boxes: NDArray[np.float32], sizes: Sequence[tuple[int, int]], threshold: float
) -> list[dict[str, Any]]:
    """COCO's compressed RLE of each mask, stretched over its box by mmdet's bilinear rule and cut off at `threshold`.

    Args:
        masks: probabilities `(n, h, w)`, float32.
        boxes: `(n, 4)` in pixels of the image.
        sizes: height and width of each mask's image.

    Returns:
        `{"size": [height, width], "counts": text}` for each, equal to what `pycocotools.mask.encode` makes of the
        pasted mask.
    """
    height, width = np.array(sizes, np.int64).reshape(-1, 2).T
    # mmdet's region on the CPU: a pixel more on each side, which a low threshold can reach.
    first = np.maximum(np.floor(boxes[:, :2]) - 1, 0).astype(np.int64)
    last = np.minimum(np.ceil(boxes[:, 2:]) + 1, np.stack([width, height], 1)).astype(np.int64)
    sides = np.maximum(last - first, 0)
    found: list[dict[str, Any]] = []
    for part in _parts(sides.prod(axis=1), PIXELS_AT_ONCE.get(masks.device.type, 1 << 20)):
        geometry = np.concatenate([first[part], sides[part], height[part, None], width[part, None]], axis=1)
        texts = _encode(masks[part], boxes[part], geometry, threshold)
        found += [{"size": list(sizes[part.start + i]), "counts": text} for i, text in enumerate(texts)]
    return found


def _parts(pixels: NDArray[np.int64], most: int) -> list[slice]:
    """Consecutive masks of at most `most` pixels together, at least one at a time."""
    starts, total = [0], 0
    for index, count in enumerate(pixels.tolist()):
        if total and total + count > most:
            starts.append(index)
            total = 0
        total += count
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(pixels)], strict=True)] if len(pixels) else []


def _encode(masks: Tensor, boxes: NDArray[np.float32], geometry: NDArray[np.int64], threshold: float) -> list[str]:
    device, count = masks.device, len(masks)
    own = torch.from_numpy(geometry).to(device, non_blocking=True)
    left, top, columns, rows, height, width = own.unbind(1)
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
    return _texts(run_owner[opens], begin[opens], end[closes], height * width, count)


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


def _texts(owner: Tensor, begin: Tensor, end: Tensor, area: Tensor, count: int) -> list[str]:
    """The compressed text of each mask, from the ends of its runs of ones.

    Runs of zeros and ones alternate from zeros on; from the fourth on each is told by its difference to the one two
    before, in digits of five bits, lowest first, with a sixth that says whether more follow (`rleToString` of COCO).
    """
    device = owner.device
    runs = torch.bincount(owner, minlength=count)
    first = runs.cumsum(0) - runs
    last_end = torch.zeros(count, dtype=torch.long, device=device).scatter_reduce_(0, owner, end, "amax")
    tail = area - last_end
    numbers = 2 * runs + (tail > 0)
    base = numbers.cumsum(0) - numbers
    within = torch.arange(len(owner), device=device) - first[owner]
    place = base[owner] + 2 * within
    end_before = torch.cat([end.new_zeros(1), end])[: len(end)]
    values = torch.zeros(int(numbers.sum()), dtype=torch.long, device=device)
    values[place] = begin - torch.where(within > 0, end_before, 0)
    values[place + 1] = end - begin
    has_tail = tail > 0
    values[(base + 2 * runs)[has_tail]] = tail[has_tail]
    holder = torch.repeat_interleave(torch.arange(count, device=device), numbers)
    position = torch.arange(len(values), device=device) - base[holder]
    two_before = torch.cat([values.new_zeros(2), values])[: len(values)]
    rest = values - torch.where(position > 2, two_before, 0)
    digits = torch.zeros(len(values), _DIGITS, dtype=torch.uint8, device=device)
    used = torch.zeros(len(values), _DIGITS, dtype=torch.bool, device=device)
    going = torch.ones_like(rest, dtype=torch.bool)
    for digit in range(_DIGITS):
        low = rest & 0x1F
        rest = rest >> 5
        more = torch.where((low & 0x10) > 0, rest != -1, rest != 0)
        digits[:, digit] = (low + torch.where(more, 0x20, 0) + 48).to(torch.uint8)
        used[:, digit] = going
        going = going & more
    lengths = torch.zeros(count, dtype=torch.long, device=device).index_add_(0, holder, used.sum(dim=1))
    text = digits[used].cpu().numpy().tobytes().decode("ascii")
    ends = np.cumsum(lengths.cpu().numpy()).tolist()
    return [text[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
