"""Boxes are coded as mmdet's coder does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.core import build_bbox_coder

from sparsevit.openmmlab.box_coding import decode, encode

SIZES = [(200, 300), (150, 280)]
CODERS: list[dict[str, Any]] = [
    {},
    {"target_means": (0.1, -0.1, 0.2, 0.0), "target_stds": (0.1, 0.1, 0.2, 0.2)},
    {"clip_border": False},
    {"add_ctr_clamp": True, "ctr_clamp": 4},
]


def drawn(count: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    corner = torch.rand(len(SIZES), count, 2) * 150
    return torch.cat([corner, corner + 1 + torch.rand(len(SIZES), count, 2) * 100], dim=-1)


@pytest.mark.parametrize("more", CODERS)
@given(count=st.integers(0, 9), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_codes_are_mmdets(more: dict[str, Any], count: int, seed: int) -> None:
    coder = build_bbox_coder({"type": "DeltaXYWHBBoxCoder", **more})
    boxes, truth = drawn(count, seed), drawn(count, seed + 1)
    deltas = encode(coder, boxes, truth)
    assert torch.equal(deltas, coder.encode(boxes.flatten(0, 1), truth.flatten(0, 1)).view_as(boxes))
    wild = torch.randn(len(SIZES), count, 4) * 5
    for image, size in enumerate(SIZES):
        expected = coder.decode(boxes[image], wild[image], max_shape=size)
        torch.testing.assert_close(decode(coder, boxes, wild, SIZES)[image], expected, rtol=1e-6, atol=1e-4)
