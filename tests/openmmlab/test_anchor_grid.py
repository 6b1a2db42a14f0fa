"""Anchors that are kept are those that mmdet's generator makes anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.core import build_prior_generator

from sparsevit.openmmlab.anchor_grid import AnchorGrid

STRIDES = (4, 8, 16)


def maps(height: int, width: int) -> list[torch.Tensor]:
    return [torch.zeros(2, 1, -(-height // stride), -(-width // stride)) for stride in STRIDES]


@given(
    batch=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    shares=st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), min_size=1, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_anchors_and_those_inside_are_mmdets(batch: tuple[int, int], shares: list[tuple[float, float]]) -> None:
    generator = build_prior_generator(
        dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0], strides=list(STRIDES))
    )
    levels = maps(*batch)
    grid = AnchorGrid.of(generator, levels)
    sizes = [each.shape[-2:] for each in levels]
    assert all(map(torch.equal, grid.levels, generator.grid_priors(sizes, device="cpu")))
    assert torch.equal(grid.together, torch.cat(grid.levels))
    images = [(max(1, int(batch[0] * tall)), max(1, int(batch[1] * wide))) for tall, wide in shares]
    expected = torch.stack(
        [torch.cat(generator.valid_flags(sizes, (*image, 3), device="cpu")).bool() for image in images]
    )
    inside = grid.inside(images)
    assert expected.all() if inside is None else torch.equal(inside, expected)
    assert (inside is None) == bool(expected.all())


def test_anchors_are_made_anew_for_other_maps_alone() -> None:
    generator = build_prior_generator(dict(type="AnchorGenerator", scales=[8], ratios=[1.0], strides=list(STRIDES)))
    first = AnchorGrid.of(generator, maps(32, 48))
    assert AnchorGrid.of(generator, maps(32, 48), first) is first
    other = AnchorGrid.of(generator, maps(48, 32), first)
    assert other is not first
    assert len(other.together) == len(first.together)
    assert AnchorGrid.of(generator, maps(32, 48), replace(first, key=None)) is not first
