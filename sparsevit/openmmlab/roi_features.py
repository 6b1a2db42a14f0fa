"""Features of boxes from the level of the pyramid that fits their size, in one go over all levels.

R boxes of the whole batch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align


def roi_features(extractor: Any, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
    """What mmdet's `SingleRoIExtractor` computes, with one wait for the device instead of one per level.

    Args:
        extractor: a `SingleRoIExtractor` of `RoIAlign` layers.
        levels: maps `(B, C, H, W)`, finest first; the extractor says how many of them are used.
        rois: `(R, 5)`, index of the image and box in pixels.

    Returns:
        `(R, C, h, w)`, in the order of `rois`.
    """
    layers = extractor.roi_layers
    level_of = extractor.map_roi_levels(rois, len(layers))
    order = level_of.argsort()
    counts = torch.bincount(level_of, minlength=len(layers)).tolist()
    parts = [
        roi_align(
            level,
            part,
            tuple(layer.output_size),
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        for layer, level, part in zip(layers, levels, torch.split(rois[order], counts), strict=False)
    ]
    return torch.cat(parts)[order.argsort()]
