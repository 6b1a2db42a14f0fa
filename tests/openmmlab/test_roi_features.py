"""Features of boxes over all levels equal torchvision's RoIAlign level by level, with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.models import build_roi_extractor
from torchvision.ops import roi_align

from sparsevit.openmmlab.roi_features import roi_features
from sparsevit.openmmlab.roi_kernel import roi_align_levels

SIDES = ((24, 20), (12, 10), (6, 5))
SCALES = (1 / 4, 1 / 8, 1 / 16)


def case(boxes: int, seed: int, channels: int = 5) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(2, channels, *side, generator=generator) for side in SIDES]
    corner = torch.rand(boxes, 2, generator=generator) * 90 - 12  # also beyond the edges
    sides = torch.rand(boxes, 2, generator=generator) ** 2 * 80
    image = torch.randint(2, (boxes, 1), generator=generator)
    rois = torch.cat([image, corner, corner + sides], dim=1)
    return levels, rois, torch.randint(len(SIDES), (boxes,), generator=generator)


def one_by_one(
    levels: list[torch.Tensor], rois: torch.Tensor, level_of: torch.Tensor, size: tuple[int, int], *rules: Any
) -> torch.Tensor:
    rows = [
        roi_align(levels[level], roi[None], size, SCALES[level], *rules)
        for roi, level in zip(rois, level_of.tolist(), strict=True)
    ]
    return torch.cat(rows)


def compare(levels: list[torch.Tensor], rois: torch.Tensor, level_of: torch.Tensor, *rules: Any) -> None:
    size = (3, 2)
    ours = [level.clone().requires_grad_() for level in levels]
    theirs = [level.clone().requires_grad_() for level in levels]
    got = roi_align_levels(ours, rois, level_of, size, SCALES, *rules)
    expected = one_by_one(theirs, rois, level_of, size, *rules)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    pull = torch.randn_like(expected)
    got.backward(pull)  # type: ignore[no-untyped-call]
    expected.backward(pull)  # type: ignore[no-untyped-call]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad if other.grad is not None else torch.zeros_like(other))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
@given(boxes=st.integers(1, 4), seed=st.integers(0, 1000), sampling=st.sampled_from([0, 1, 2]), aligned=st.booleans())
@settings(max_examples=10, deadline=None)
def test_kernel_equals_torchvision(boxes: int, seed: int, sampling: int, aligned: bool) -> None:
    pytest.importorskip("triton")
    compare(*case(boxes, seed), sampling, aligned)


@pytest.mark.gpu
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
def test_kernel_on_a_gpu(sampling: int, aligned: bool) -> None:
    levels, rois, level_of = case(300, 0, channels=256)
    compare([level.cuda() for level in levels], rois.cuda(), level_of.cuda(), sampling, aligned)


@pytest.mark.gpu
def test_bfloat16_on_a_gpu() -> None:
    levels, rois, level_of = case(200, 1, channels=256)
    got = roi_align_levels(
        [each.cuda().bfloat16() for each in levels], rois.cuda(), level_of.cuda(), (7, 7), SCALES, 0, True
    )
    expected = one_by_one([each.bfloat16().float() for each in levels], rois, level_of, (7, 7), 0, True)
    assert torch.linalg.norm(got.cpu().float() - expected) < 5e-3 * torch.linalg.norm(expected)


@pytest.mark.parametrize("sampling", [0, 2])
def test_features_equal_mmdets_extractor(sampling: int) -> None:
    extractor = build_roi_extractor(
        dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=(3, 2), sampling_ratio=sampling),
            out_channels=5,
            featmap_strides=[4, 8, 16],
            finest_scale=16,
        )
    )
    levels, rois, _ = case(20, 3)
    torch.testing.assert_close(roi_features(extractor, levels, rois), extractor(levels, rois))
