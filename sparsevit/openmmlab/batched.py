"""Assigning and sampling boxes for a whole batch at once: fixed shapes, no loop over images, no wait for the device.

B images, N boxes to judge, G true boxes of an image (padded), S samples of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of each image as `(B, G, 4)`, and which of them are real, `(B, G)`. G is at least 1."""
    most = max(1, *(len(each) for each in boxes))
    padded = boxes[0].new_zeros(len(boxes), most, 4)
    for image, each in zip(padded, boxes, strict=True):
        image[: len(each)] = each[:, :4]
    counts = torch.tensor([len(each) for each in boxes], device=padded.device)
    return padded, torch.arange(most, device=padded.device) < counts[:, None]


def pairwise_iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union, `(B, N, 4)` with `(B, G, 4)` to `(B, N, G)`."""
    low = torch.maximum(boxes[:, :, None, :2], truth[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], truth[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(dim=-1) for each in (boxes, truth)]
    return shared / (areas[0][:, :, None] + areas[1][:, None] - shared).clamp(min=1e-6)


def assign(
    boxes: Tensor, truth: Tensor, real: Tensor, *, positive: float, negative: float, low_quality: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """mmdet's `MaxIoUAssigner` for a batch.

    Args:
        boxes, truth, real: `(B, N, 4)`, `(B, G, 4)`, `(B, G)`.
        positive, negative: IoU from which a box is positive, and below which it is negative.
        low_quality: a true box also takes the boxes that fit it best, if their IoU is at least this; None: never.

    Returns:
        Index of the true box each box is matched with, `(B, N)`; which are positive; which are negative.
    """
    iou = pairwise_iou(boxes, truth).masked_fill(~real[:, None], -1.0)
    best, matched = iou.max(dim=2)
    is_positive = best >= positive
    if low_quality is not None:
        best_of_truth = iou.max(dim=1, keepdim=True).values
        takes = (iou == best_of_truth) & (best_of_truth >= low_quality)
        # As in mmdet, the last of several true boxes that claim a box gets it.
        order = torch.arange(1, iou.shape[2] + 1, device=iou.device)
        claim, claimed_by = (takes * order).max(dim=2)
        matched = torch.where(claim > 0, claimed_by, matched)
        is_positive = is_positive | (claim > 0)
    return matched, is_positive, (best < negative) & ~is_positive


def pick(positive: Tensor, negative: Tensor, count: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """mmdet's `RandomSampler` for a batch: at most `share * count` positives, filled up with negatives.

    Returns:
        Indices `(B, S)` with positives first, which of them are positive, and which are in use at all.
    """
    boxes = positive.shape[1]
    most, count = min(int(count * share), boxes), min(count, boxes)
    luck = torch.rand(positive.shape, device=positive.device)
    order = torch.where(positive, luck, -1.0)
    threshold = order.topk(most, dim=1).values[:, -1:].clamp(min=0)
    lucky = positive & (order >= threshold)
    rank = torch.where(lucky, luck + 2, torch.where(negative, luck + 1e-6, -1.0))
    value, index = rank.topk(count, dim=1)
    return index, value >= 2, value > 0
