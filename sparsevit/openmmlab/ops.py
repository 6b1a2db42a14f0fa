"""mmcv's compiled operators without a compiler: `nms` and `roi_align` served by torchvision, focal loss by torch.

mmcv without ops lacks the extension module `mmcv._ext`. A stand-in takes its place before mmcv looks for it; operators
that it does not serve can be imported, and say which operator is missing when called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor
from torch.nn import functional as F

from sparsevit.errors import UserError

_MODULE = "mmcv._ext"
# mmcv's own set-up needs pkg_resources, torch in sight, and to be told that operators are wanted.
_CURE = (
    "pip uninstall -y mmcv && pip install 'setuptools<81' wheel && "
    "MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv-full==1.7.2 (needs a C++ compiler)"
)


class _StandIn(ModuleType):
    """Serves the operators below; any other attribute is a function that explains itself when called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise UserError(f"this model uses mmcv's operator '{name}', which mmcv-full alone has: {_CURE}")

        return missing


def serve_with_torchvision() -> None:
    """Register the stand-in, unless a compiled extension (or the stand-in) is there already."""
    if _MODULE not in sys.modules and not _compiled():
        sys.modules[_MODULE] = stand_in()


def stand_in() -> ModuleType:
    """A module with the operators below, as mmcv calls them; needs no mmcv, and stands beside mmcv-full as well."""
    module = _StandIn(_MODULE)
    module.__spec__ = ModuleSpec(_MODULE, loader=None)  # mmcv asks for it with pkgutil.find_loader
    for function in (
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    ):
        setattr(module, function.__name__, function)
    return module


@dataclass(frozen=True)
class Operators:
    """Where mmcv's operators come from, in one phrase, and whether they run on GPUs."""

    source: str
    on_gpu: bool


def ops_in_use() -> Operators:
    """The operators that models use in this process."""
    if isinstance(sys.modules.get(_MODULE), _StandIn) or not _compiled():
        return Operators("torchvision (nms, roi_align)", on_gpu=True)
    from mmcv.ops import get_compiling_cuda_version

    cuda = get_compiling_cuda_version()
    if cuda == "not available":
        return Operators("mmcv-full, compiled for the CPU alone", on_gpu=False)
    return Operators(f"mmcv-full, compiled for CUDA {cuda}", on_gpu=True)


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
        raise UserError(f"RoIAlign with pool_mode='max' needs mmcv-full: take 'avg', or {_CURE}")
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


def sigmoid_focal_loss_forward(
    logits: Tensor, labels: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the focal loss (Lin et al., 2017) of `logits` `(n, classes)` into `output`; label `classes` is none."""
    output.copy_(_focal_loss(logits.float(), labels, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, labels: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the gradient with respect to the logits into `grad_input` `(n, classes)`."""
    with torch.enable_grad():
        inputs = logits.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(_focal_loss(inputs, labels, weight, gamma, alpha).sum(), inputs)
    grad_input.copy_(gradient)


def _focal_loss(logits: Tensor, labels: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    present = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].bool()
    wrong = torch.where(present, -logits, logits)  # its sigmoid is the probability of the wrong answer
    loss = F.softplus(wrong) * wrong.sigmoid() ** gamma * torch.where(present, alpha, 1 - alpha)
    if weight.numel():  # of each class, taken at the label
        loss = loss * weight[labels].unsqueeze(1)
    return loss
