"""mmdet's `DeltaXYWHBBoxCoder` for whole batches, without the wait for the device that its constants cost it.

n boxes, any number of leading dimensions before their four coordinates (left, top, right, bottom, in pixels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FLATTEST = 16 / 1000  # mmdet's `wh_ratio_clip`: no side grows by more than its inverse


def constant(values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor on the device of another one, of its dtype unless told otherwise, without a wait for it."""
    return torch.tensor(values, dtype=dtype or like.dtype).to(like.device, non_blocking=True)


def encode(coder: Any, boxes: Tensor, truth: Tensor) -> Tensor:
    """What has to be predicted for boxes to become the true ones, `(…, 4)` each; `coder.encode`."""
    size = boxes[..., 2:] - boxes[..., :2]
    shift = ((truth[..., :2] + truth[..., 2:]) * 0.5 - (boxes[..., :2] + boxes[..., 2:]) * 0.5) / size
    growth = torch.log((truth[..., 2:] - truth[..., :2]) / size)
    return (torch.cat([shift, growth], dim=-1) - constant(coder.means, size)) / constant(coder.stds, size)


def decode(coder: Any, boxes: Tensor, deltas: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """The boxes that predictions make of boxes, both `(B, n, 4)`, clipped to the images; `coder.decode`.

    Args:
        sizes: height and width of each image in pixels.
    """
    deltas = deltas * constant(coder.stds, deltas) + constant(coder.means, deltas)
    size, most = boxes[..., 2:] - boxes[..., :2], abs(math.log(_FLATTEST))
    shift, growth = size * deltas[..., :2], deltas[..., 2:]
    if coder.add_ctr_clamp:
        shift, growth = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp), growth.clamp(max=most)
    else:
        growth = growth.clamp(-most, most)
    middle, half = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + shift, size * growth.exp() * 0.5
    found = torch.cat([middle - half, middle + half], dim=-1)
    if not coder.clip_border:
        return found
    limits = constant([(width, height, width, height) for height, width in sizes], found)
    return torch.minimum(found.clamp_(min=0), limits[:, None])
