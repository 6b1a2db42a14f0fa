"""Features of boxes from the level of the pyramid that fits their size, in one go over all levels.

R boxes of the whole batch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align


def roi_features(extractor: Any, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
    """What mmdet's `SingleRoIExtractor` computes; with Triton on a GPU nothing waits for the device.

    Args:
        extractor: a `SingleRoIExtractor` of `RoIAlign` layers.
        levels: maps `(B, C, H, W)`, finest first; the extractor says how many of them are used.
        rois: `(R, 5)`, index of the image and box in pixels.

    Returns:
        `(R, C, h, w)`, in the order of `rois`.
    """
    layers = extractor.roi_layers
    level_of = extractor.map_roi_levels(rois, len(layers))
    size = tuple(layers[0].output_size)
    scales = [layer.spatial_scale for layer in layers]
    rules = (layers[0].sampling_ratio, layers[0].aligned)
    if rois.is_cuda and find_spec("triton"):
        from sparsevit.openmmlab.roi_kernel import roi_align_levels

        return roi_align_levels(levels[: len(layers)], rois, level_of, size, scales, *rules)
    order = level_of.argsort()
    counts = torch.bincount(level_of, minlength=len(layers)).tolist()
    parts = [
        roi_align(level, part, size, scale, *rules)
        for level, part, scale in zip(levels, torch.split(rois[order], counts), scales, strict=False)
    ]
    return torch.cat(parts)[order.argsort()]
