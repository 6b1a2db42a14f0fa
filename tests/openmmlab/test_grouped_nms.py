"""The kernel that suppresses boxes of many groups side by side decides as torchvision does group by group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torchvision")

from torchvision.ops import nms

from sparsevit.openmmlab import grouped_nms as module
from sparsevit.openmmlab.grouped_nms import grouped_nms


def boxes(groups: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(groups, count, 2, generator=generator) * 60
    made = torch.cat([corner, corner + 5 + torch.rand(groups, count, 2, generator=generator) * 50], dim=-1)
    made[torch.rand(groups, count, generator=generator) < 0.1] = 0  # as padding looks
    return made


def one_by_one(groups: torch.Tensor, threshold: float) -> torch.Tensor:
    expected = torch.zeros(groups.shape[:2], dtype=torch.bool)
    for group, kept in zip(groups, expected, strict=True):
        kept[nms(group, -torch.arange(len(group), dtype=torch.float), threshold)] = True
    return expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
@given(
    groups=st.integers(1, 3),
    count=st.integers(1, 70),
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
)
@settings(max_examples=12, deadline=None)
def test_kernels_decide_as_torchvision(groups: int, count: int, seed: int, threshold: float) -> None:
    pytest.importorskip("triton")
    given_boxes = boxes(groups, count, seed)
    assert torch.equal(module._on_device(given_boxes, threshold), one_by_one(given_boxes, threshold))


def test_without_a_gpu_torchvision_decides() -> None:
    given_boxes = boxes(3, 40, 0)
    assert torch.equal(grouped_nms(given_boxes, 0.5), one_by_one(given_boxes, 0.5))
    assert grouped_nms(given_boxes[:, :0], 0.5).shape == (3, 0)


@pytest.mark.gpu
@pytest.mark.parametrize(("groups", "count"), [(1, 1), (80, 2000), (7, 333)])
def test_on_a_gpu(groups: int, count: int) -> None:
    given_boxes = (boxes(groups, count, 1) * 10).round()  # whole numbers: no overlap is off the threshold by rounding
    assert torch.equal(grouped_nms(given_boxes.cuda(), 0.7).cpu(), one_by_one(given_boxes, 0.7))
