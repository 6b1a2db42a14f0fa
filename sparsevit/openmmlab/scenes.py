"""One image of a data set under a detector's present sparsity: windows kept, and what is detected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsevit.model.watching import watch_windows
from sparsevit.openmmlab.hooks import backbone_of
from sparsevit.search.scene import Detection, LayerWindows, Scene

LEAST_SCORE = 0.3


def scene_of(model: nn.Module, image: Tensor, meta: Mapping[str, Any], classes: tuple[str, ...]) -> Scene:
    """Run the detector on one prepared image, shape `(3, H, W)`, with mmdet's meta data of it."""
    backbone = backbone_of(model)
    device = next(model.parameters()).device
    with torch.inference_mode(), watch_windows(backbone) as layers:
        (found,) = model(return_loss=False, rescale=False, img=[image[None].to(device)], img_metas=[[dict(meta)]])
    height, width = meta["img_shape"][:2]
    boxes = found[0] if isinstance(found, tuple) else found
    detections = [
        Detection(x0 / width, y0 / height, x1 / width, y1 / height, classes[label], score)
        for label, per_class in enumerate(boxes)
        for x0, y0, x1, y1, score in per_class.tolist()
        if score >= LEAST_SCORE
    ]
    return Scene(
        image=_pixels(image, meta)[:height, :width],
        layers=[LayerWindows(one.kept, one.windows, _inside(one.computed, image, height, width)) for one in layers],
        detections=sorted(detections, key=lambda one: -one.score),
    )


def _pixels(image: Tensor, meta: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The image as it was before normalisation, RGB."""
    norm = meta["img_norm_cfg"]
    pixels = image.permute(1, 2, 0).float().cpu().numpy() * np.asarray(norm["std"]) + np.asarray(norm["mean"])
    if not norm.get("to_rgb", True):
        pixels = pixels[..., ::-1]
    return np.asarray(np.clip(pixels.round(), 0, 255), np.uint8)


def _inside(computed: Tensor, image: Tensor, height: int, width: int) -> NDArray[Any]:
    """The tokens of the image alone, without those of what it was padded by."""
    rows, columns = computed.shape
    padded_height, padded_width = image.shape[-2:]
    inside = computed[: -(-rows * height // padded_height), : -(-columns * width // padded_width)]
    return np.asarray(inside.numpy())
