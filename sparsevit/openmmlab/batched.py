"""Assigning and sampling boxes for a whole batch at once: fixed shapes, no loop over images, no wait for the device.

B images, N boxes to judge, G true boxes of an image (padded), S samples of an image, P proposals of an image (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sparsevit.openmmlab.box_coding import constant

_AT_ONCE = 2**25
"""Pairs of boxes compared at once: bounds memory where an image of a large batch holds very many true boxes."""


@dataclass(frozen=True)
class Proposals(Sequence[Tensor]):
    """Proposals of a batch, padded to one number. As a sequence it is what mmdet's heads expect: `(n, 5)` per image.

    Attributes:
        boxes: `(B, P, 4)`, best first.
        scores: `(B, P)`.
        present: which are real, `(B, P)`.
    """

    boxes: Tensor
    scores: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, image: int) -> Tensor:  # type: ignore[override]  # no slices: nobody takes them
        kept = self.present[image]
        return torch.cat([self.boxes[image][kept], self.scores[image][kept, None]], dim=1)

    @classmethod
    def of(cls, proposals: Sequence[Tensor]) -> Proposals:
        """The same for proposals that are given image by image."""
        if isinstance(proposals, Proposals):
            return proposals
        boxes, present = pad_boxes(proposals)
        return cls(boxes, torch.ones_like(boxes[..., 0]), present)


def pad_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of each image as `(B, G, 4)`, and which of them are real, `(B, G)`. G is at least 1."""
    padded = _at_least(pad_sequence([each[:, :4] for each in boxes], batch_first=True), (0, 0), 1)
    counts = constant([len(each) for each in boxes], padded, torch.long)
    return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]


def pad_labels(labels: Sequence[Tensor], width: int, background: int) -> Tensor:
    """Labels of each image as `(B, width)`, filled up with the background's."""
    return _at_least(pad_sequence(list(labels), batch_first=True, padding_value=background), (), width, background)


def _at_least(padded: Tensor, before: tuple[int, ...], width: int, value: float = 0.0) -> Tensor:
    """Padded on the right of dimension 1 to a width; `before` are the paddings of the dimensions behind it."""
    missing = width - padded.shape[1]
    return F.pad(padded, (*before, 0, missing), value=value) if missing > 0 else padded


def pairwise_iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union, `(B, N, 4)` with `(B, G, 4)` to `(B, N, G)`."""
    a, b = boxes[:, :, None], truth[:, None]
    shared = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    shared *= (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(dim=-1) for each in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp_(min=1e-6)


def assign(
    boxes: Tensor,
    truth: Tensor,
    real: Tensor,
    *,
    positive: float,
    negative: float,
    low_quality: float | None,
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """mmdet's `MaxIoUAssigner` for a batch.

    Args:
        boxes, truth, real: `(B, N, 4)`, `(B, G, 4)`, `(B, G)`.
        positive, negative: IoU from which a box is positive, and below which it is negative.
        low_quality: a true box also takes the boxes that fit it best, if their IoU is at least this; None: never.
        among: which boxes take part, `(B, N)`; the others are neither positive nor negative. None: all.

    Returns:
        Index of the true box each box is matched with, `(B, N)`; which are positive; which are negative.
    """
    if among is None:
        among = torch.ones_like(boxes[..., 0], dtype=torch.bool)
    images = max(1, _AT_ONCE // (boxes.shape[1] * truth.shape[1]))
    parts = [
        _assign(boxes[own], truth[own], real[own], among[own], positive, negative, low_quality)
        for own in (slice(start, start + images) for start in range(0, len(truth), images))
    ]
    matched, is_positive, is_negative = (torch.cat(each) for each in zip(*parts, strict=True))
    return matched, is_positive, is_negative


def _assign(
    boxes: Tensor, truth: Tensor, real: Tensor, among: Tensor, positive: float, negative: float, low: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    iou = pairwise_iou(boxes, truth).masked_fill_(~(real[:, None] & among[:, :, None]), -1.0)
    best, chosen = iou.max(dim=2)
    above = best >= positive
    if low is not None:
        best_of_truth = iou.max(dim=1, keepdim=True).values
        takes = (iou == best_of_truth) & (best_of_truth >= low)
        # As in mmdet, the last of several true boxes that claim a box gets it.
        order = torch.arange(1, iou.shape[2] + 1, device=iou.device, dtype=torch.int32)
        claim, claimed_by = (takes * order).max(dim=2)
        chosen = torch.where(claim > 0, claimed_by, chosen)
        above = above | (claim > 0)
    return chosen, above & among, (best < negative) & ~above & among


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
