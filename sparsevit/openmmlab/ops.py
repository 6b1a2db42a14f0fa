"""mmcv's compiled operators without a compiler: `nms` and `roi_align` served by torchvision.

mmcv without ops lacks the extension module `mmcv._ext`. A stand-in takes its place before mmcv looks for it; operators
that it does not serve can be imported, and say which operator is missing when called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from sparsevit.errors import UserError

_MODULE = "mmcv._ext"


class _StandIn(ModuleType):
    """Serves the operators below; any other attribute is a function that explains itself when called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise UserError(
                f"this model uses mmcv's compiled operator '{name}', which plain mmcv does not have: "
                "pip uninstall -y mmcv && pip install mmcv-full==1.7.2 (needs a C++ compiler)"
            )

        return missing


def serve_with_torchvision() -> None:
    """Register the stand-in, unless a compiled extension (or the stand-in) is there already."""
    if _MODULE in sys.modules or _compiled():
        return
    module = _StandIn(_MODULE)
    module.__spec__ = ModuleSpec(_MODULE, loader=None)  # mmcv asks for it with pkgutil.find_loader
    for function in (nms, roi_align_forward, roi_align_backward):
        setattr(module, function.__name__, function)
    sys.modules[_MODULE] = module


def ops_in_use() -> str:
    """One phrase for `sparsevit check`: where `nms` and `roi_align` come from."""
    if isinstance(sys.modules.get(_MODULE), _StandIn) or not _compiled():
        return "torchvision (nms, roi_align)"
    return "mmcv-full, compiled"


def _compiled() -> bool:
    mmcv = find_spec("mmcv")
    if mmcv is None or mmcv.submodule_search_locations is None:
        return False
    from importlib.machinery import PathFinder

    return PathFinder.find_spec(_MODULE, list(mmcv.submodule_search_locations)) is not None


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes `(n, 4)` kept, best first. `offset` 1 counts pixels inclusively, as mmdet 1 did."""
    if offset:
        bboxes = bboxes + bboxes.new_tensor([0, 0, offset, offset])
    kept: Tensor = torch.ops.torchvision.nms(bboxes.float(), scores.float(), iou_threshold)
    return kept


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write pooled features of `rois` `(n, 5)` into `output` `(n, C, height, width)`."""
    if pool_mode != 1:
        raise UserError("RoIAlign with pool_mode='max' needs mmcv-full; torchvision serves pool_mode='avg' alone")
    # In float32: torchvision has no bfloat16 kernel, and box coordinates would lose whole pixels in it.
    pooled = torch.ops.torchvision.roi_align(
        features.float(), rois.float(), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient with respect to the features into `grad_input` `(B, C, H, W)`."""
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output.float(),
        rois.float(),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)
