"""Instance masks that stay on the device: what mmdet's mask targets need of `BitmapMasks`, with no copy to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


class DeviceMasks:
    """Masks of one image, bool `(n, h, w)`, on any device."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks
        self.height, self.width = masks.shape[-2:]

    @classmethod
    def of(cls, masks: Any, device: torch.device) -> DeviceMasks:
        """The same for mmdet's `BitmapMasks`, or what else offers `to_ndarray`."""
        if isinstance(masks, DeviceMasks):
            return masks
        return cls(torch.from_numpy(masks.to_ndarray()).to(device, non_blocking=True).bool())

    def __len__(self) -> int:
        return len(self.masks)

    def crop_and_resize(
        self,
        bboxes: NDArray[np.float32],
        out_shape: tuple[int, int],
        inds: NDArray[np.int64],
        device: str | torch.device = "cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> DeviceMasks:
        """Mask `inds[i]` inside box `bboxes[i]`, resized to `out_shape`; as mmdet's `BitmapMasks` does."""
        rois = torch.from_numpy(bboxes).to(self.masks.device, torch.float32)
        masks = self.masks[torch.from_numpy(inds).to(self.masks.device)].float()[:, None]
        numbers = torch.arange(len(rois), device=rois.device, dtype=rois.dtype)[:, None]
        cropped = roi_align(masks, torch.cat([numbers, rois], dim=1), out_shape, 1.0, 0, True)[:, 0]
        return DeviceMasks(cropped >= 0.5 if binarize else cropped)

    def to_ndarray(self) -> NDArray[Any]:
        array: NDArray[Any] = self.masks.cpu().numpy()
        return array


def joined(masks: Sequence[Any], device: torch.device) -> Tensor:
    """Masks of several images in any form that `DeviceMasks.of` takes, bool `(N, H, W)`, as large as the largest.

    An image's masks lie in the top left corner: mmdet pads images one by one, and then those of a batch to the largest.
    """
    found = [DeviceMasks.of(each, device).masks for each in masks]
    height, width = (max(each.shape[side] for each in found) for side in (1, 2))
    return torch.cat([_padded(each, height, width) for each in found])


def _padded(masks: Tensor, height: int, width: int) -> Tensor:
    missing = (0, width - masks.shape[2], 0, height - masks.shape[1])
    return F.pad(masks, missing) if any(missing) else masks
