"""Non-maximum suppression of many groups of boxes at once: every level of every image of a batch.

P groups, N boxes of a group, W words of 32 boxes. One after the other, the groups of a training batch take tens of
milliseconds and a wait for the device each; their scans are sequential, so they run side by side here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

WORD = 32
_ROWS = 64
"""Boxes whose overlaps one program of the first kernel works out."""


def grouped_nms(boxes: Tensor, threshold: float) -> Tensor:
    """Which boxes of each group stay when every box that overlaps a better, staying one by more than `threshold` goes.

    Args:
        boxes: `(P, N, 4)`, each group sorted by descending score. A box without area stays and suppresses nothing.
        threshold: intersection over union, a fraction.

    Returns:
        Bool `(P, N)`. As `torchvision.ops.nms` decides; nothing is copied to the host.
    """
    boxes = boxes.detach().float().contiguous()
    if boxes.device.type == "cuda" and boxes.numel():
        return _on_device(boxes, threshold)
    keep = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    order = -torch.arange(boxes.shape[1], dtype=torch.float, device=boxes.device)
    for group, kept in zip(boxes, keep, strict=True):
        kept[nms(group, order, threshold)] = True
    return keep


def _on_device(boxes: Tensor, threshold: float) -> Tensor:
    import triton

    overlaps, scan = _kernels()
    groups, count, _ = boxes.shape
    words = triton.cdiv(count, WORD)
    masks = torch.empty(groups, words * WORD, words, dtype=torch.int32, device=boxes.device)
    keep = torch.empty(groups, words * WORD, dtype=torch.bool, device=boxes.device)
    overlaps[triton.cdiv(words * WORD, _ROWS), words, groups](boxes, masks, count, words, threshold, _ROWS, WORD)
    scan[(groups,)](masks, keep, words, triton.next_power_of_2(words), WORD, num_warps=1)
    return keep[:, :count]


@cache
def _kernels() -> tuple[Any, Any]:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def overlaps(  # type: ignore[no-untyped-def]
        boxes, masks, count, words, threshold, ROWS: tl.constexpr, WORD: tl.constexpr
    ):
        """Bit j of `masks[p, i, w]`: box i overlaps box 32 w + j, which is worse, by more than the threshold."""
        row_block, word, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        rows = row_block * ROWS + tl.arange(0, ROWS)
        bits = tl.arange(0, WORD)
        columns = word * WORD + bits
        out = masks + (group.to(tl.int64) * words * WORD + rows) * words + word
        inside = rows < words * WORD
        if word * WORD + WORD <= row_block * ROWS:  # all of these are better: nothing to suppress
            tl.store(out, tl.zeros((ROWS,), tl.int32), mask=inside)
        else:
            row_box = boxes + (group.to(tl.int64) * count + rows) * 4
            column_box = boxes + (group.to(tl.int64) * count + columns) * 4
            x1 = tl.load(row_box, mask=rows < count, other=0.0)[:, None]
            y1 = tl.load(row_box + 1, mask=rows < count, other=0.0)[:, None]
            x2 = tl.load(row_box + 2, mask=rows < count, other=0.0)[:, None]
            y2 = tl.load(row_box + 3, mask=rows < count, other=0.0)[:, None]
            u1 = tl.load(column_box, mask=columns < count, other=0.0)[None]
            v1 = tl.load(column_box + 1, mask=columns < count, other=0.0)[None]
            u2 = tl.load(column_box + 2, mask=columns < count, other=0.0)[None]
            v2 = tl.load(column_box + 3, mask=columns < count, other=0.0)[None]
            width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
            height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
            shared = width * height
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            over = (shared > threshold * union) & (columns[None] > rows[:, None])
            # The bits differ, so their sum is their union; the 32nd makes the number negative, which is meant.
            packed = tl.sum(tl.where(over, (1 << bits)[None], 0), axis=1)
            tl.store(out, packed, mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def scan(  # type: ignore[no-untyped-def]
        masks, keep, words: tl.constexpr, WIDTH: tl.constexpr, WORD: tl.constexpr
    ):
        """Goes through a group from its best box on; `gone` collects who is suppressed, 32 boxes to an integer."""
        group = tl.program_id(0).to(tl.int64)
        masks += group * words * WORD * words
        keep += group * words * WORD
        columns = tl.arange(0, WIDTH)
        bits = tl.arange(0, WORD)
        gone = tl.zeros((WIDTH,), tl.int32)
        for word in range(words):
            own = tl.sum(tl.where(columns == word, gone, 0), axis=0)
            for i in tl.static_range(WORD):
                row = masks + (word * WORD + i) * words
                stays = ((own >> i) & 1) == 0
                own |= tl.where(stays, tl.load(row + word), 0)
                gone |= tl.where(stays, tl.load(row + columns, mask=columns < words, other=0), 0)
            tl.store(keep + word * WORD + bits, ((own >> bits) & 1) == 0)

    return overlaps, scan
