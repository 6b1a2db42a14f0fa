"""mmcv-full's compiled operators and those served without a compiler compute the same. Needs mmcv-full: make
test-mmcv-full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmcv's operators importable
from mmcv.ops import batched_nms, nms, roi_align, sigmoid_focal_loss
from sparsevit.openmmlab import ops

USED = ops.ops_in_use()
# The modules; of two of them, mmcv.ops has a function of the same name in its place.
NMS, ROI_ALIGN, FOCAL = (import_module(f"mmcv.ops.{name}") for name in ("nms", "roi_align", "focal_loss"))
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not USED.on_gpu, reason="mmcv-full is compiled for the CPU alone")],
    ),
]

pytestmark = pytest.mark.skipif("mmcv-full" not in USED.source, reason="no mmcv-full here")


@contextmanager
def served() -> Iterator[None]:
    """mmcv's functions call the stand-in."""
    module = ops.stand_in()
    with pytest.MonkeyPatch.context() as patch:
        for user in (NMS, ROI_ALIGN, FOCAL):
            patch.setattr(user, "ext_module", module)
        yield


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """What a function makes of the compiled operators, and of the served ones."""
    compiled = function()
    with served():
        return compiled, function()


def random_boxes(count: int, generator: torch.Generator, *, extent: float = 60) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 30], dim=1)


def test_the_compiled_operators_are_compared_and_not_the_stand_in() -> None:
    assert not isinstance(NMS.ext_module, ops._StandIn)
    assert NMS.ext_module.nms is not ops.nms
    with served():
        assert NMS.ext_module.nms is ops.nms
    assert NMS.ext_module.nms is not ops.nms


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 200),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    offset=st.sampled_from([0, 1]),
)
@settings(max_examples=100)
def test_nms(device: str, seed: int, count: int, threshold: float, offset: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, generator).to(device)
    scores = torch.rand(count, generator=generator).to(device)
    compiled, replaced = both(lambda: nms(boxes, scores, threshold, offset=offset))
    assert torch.equal(compiled[1], replaced[1])
    assert torch.equal(compiled[0], replaced[0])


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 120), levels=st.integers(1, 4))
@settings(max_examples=60)
def test_nms_of_boxes_with_tied_scores(device: str, seed: int, count: int, levels: int) -> None:
    """Which of two tied boxes comes first mmcv-full leaves open; either answer must be one of greedy suppression."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, generator).to(device)
    scores = (torch.randint(levels, (count,), generator=generator).float() / levels).to(device)
    too_near = box_iou(boxes, boxes) > 0.5
    for _, kept in both(lambda: nms(boxes, scores, 0.5)):
        assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
        assert not too_near[kept][:, kept].triu(diagonal=1).any()
        better = scores[kept][:, None] >= scores
        assert (too_near[kept] & better).any(dim=0).all(), "what is gone was too near to one at least as good"


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
def test_nms_of_boxes_that_are_there_twice(device: str, seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, generator).repeat(2, 1).to(device)
    scores = torch.rand(count, generator=generator).repeat(2).to(device)
    compiled, replaced = both(lambda: nms(boxes, scores, 0.5))
    assert torch.equal(compiled[0], replaced[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("class_agnostic", [False, True], ids=["by class", "over classes"])
@pytest.mark.parametrize("count", [0, 1, 60, 12_000], ids=lambda count: f"{count} boxes")  # many are split by class
def test_batched_nms(device: str, count: int, class_agnostic: bool) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes = random_boxes(count, generator, extent=800).to(device)
    scores = torch.rand(count, generator=generator).to(device)
    labels = torch.randint(5, (count,), generator=generator).to(device)
    settings = dict(type="nms", iou_threshold=0.5, max_num=300)
    if count == 0 and not class_agnostic:  # mmcv takes the largest coordinate of no box; mmdet does not come here
        for context in (nullcontext(), served()):
            with context, pytest.raises(RuntimeError, match="numel"):
                batched_nms(boxes, scores, labels, dict(settings), class_agnostic)
        return
    compiled, replaced = both(lambda: batched_nms(boxes, scores, labels, dict(settings), class_agnostic))
    assert torch.equal(compiled[0], replaced[0])
    assert torch.equal(compiled[1], replaced[1])


def pooled(features: Tensor, rois: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The pooled features, and the gradient of a weighted sum of them with respect to the features."""
    inputs = features.clone().requires_grad_()
    output = roi_align(inputs, rois, *arguments)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    (gradient,) = torch.autograd.grad((output * weight).sum(), inputs)
    return output.detach(), gradient


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 12),
    size=st.sampled_from([(7, 7), (14, 14), (3, 5)]),
    scale=st.sampled_from([1.0, 1 / 4, 1 / 32]),
)
@settings(max_examples=30)
def test_roi_align_forward_and_backward(
    device: str, aligned: bool, sampling_ratio: int, seed: int, count: int, size: tuple[int, int], scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 13, 17, generator=generator).to(device)
    image = torch.randint(2, (count, 1), generator=generator).float()
    # Some reach over the map's edge, as proposals do before they are clipped.
    rois = torch.cat([image, (random_boxes(count, generator, extent=20) - 4) / scale], dim=1).to(device)
    compiled, replaced = both(lambda: pooled(features, rois, size, scale, sampling_ratio, "avg", aligned))
    torch.testing.assert_close(replaced[0], compiled[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(replaced[1], compiled[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_roi_align_of_channels_last_features(device: str) -> None:
    """The backbone's features are such; read as contiguous they would give nonsense."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 13, 17, generator=generator).to(device)
    rois = torch.tensor([[0, 1.0, 1.0, 9.0, 9.0], [1, 3.0, 2.0, 11.0, 10.0]], device=device)
    expected = pooled(features, rois, (7, 7), 1.0, 2, "avg", True)
    strided = features.to(memory_format=torch.channels_last)
    for found in both(lambda: pooled(strided, rois, (7, 7), 1.0, 2, "avg", True)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_roi_align_of_half_precision_features(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 40, 40, generator=generator).to(device, dtype)
    rois = torch.tensor([[0, 401.3, 402.7, 611.1, 599.9], [1, 3.1, 5.7, 300.3, 100.1]], device=device)
    compiled, replaced = both(lambda: pooled(features, rois, (7, 7), 1 / 16, 2, "avg", True))
    assert compiled[0].dtype == dtype
    torch.testing.assert_close(replaced, compiled)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nms_of_half_precision_boxes(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(50, generator).to(device, dtype)
    scores = (torch.randperm(50, generator=generator) / 64).to(device, dtype)  # exact: no ties
    compiled, replaced = both(lambda: nms(boxes, scores, 0.5))
    assert torch.equal(compiled[1], replaced[1])


# mmcv-full has no focal loss for the CPU; there tests/openmmlab/test_ops.py compares with mmdet's own.
@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sigmoid_focal_loss_forward_and_backward(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # mmcv's kernel takes 1 - p in float32, which for larger logits has few digits left: 3 % are wrong at 12.
    logits = (torch.randn(200, 7, generator=generator) * 4).clamp(-6, 6).to(device, dtype)
    labels = torch.randint(8, (200,), generator=generator).to(device)

    def loss() -> tuple[Tensor, Tensor]:
        inputs = logits.clone().requires_grad_()
        values = sigmoid_focal_loss(inputs, labels, 2.0, 0.25, None, "none")
        (gradient,) = torch.autograd.grad(values.sum(), inputs)
        return values.detach(), gradient

    compiled, replaced = both(loss)
    tolerance = dict(rtol=1e-4, atol=1e-6) if dtype == torch.float32 else {}
    torch.testing.assert_close(replaced, compiled, **tolerance)
