"""Masks that were packed are what they were, also flipped, and on an image larger than their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401  makes mmdet importable
from sparsevit.openmmlab.packed_masks import START, PackedMasks, unpack_batch


def random_masks(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """Filled boxes with holes; some are empty, some touch the border."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        y, x = random.integers(-2, height), random.integers(-2, width)
        mask[max(0, y) : y + random.integers(0, height), max(0, x) : x + random.integers(0, width)] = 1
        mask &= random.random((height, width)) < 0.8
    return masks


@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=3),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_unpacked_masks_are_what_they_were(
    seed: int, counts: list[int], shapes: list[tuple[int, int]], more: tuple[int, int]
) -> None:
    random = np.random.default_rng(seed)
    height, width = (max(shape[side] for shape in shapes) + more[side] for side in (0, 1))
    expected, bits, tables, frames, start = [], [], [], [], 0
    for count, (h, w) in zip(counts, shapes, strict=False):
        masks = random_masks(seed, count, h, w)
        packed = PackedMasks.of(masks)
        np.testing.assert_array_equal(packed.unpack(), masks)
        mirrored, upside_down = random.integers(2, size=2)
        turned = masks[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]
        whole = np.zeros((count, height, width), bool)
        whole[:, :h, :w] = turned
        expected.append(whole)
        table = packed.table.copy()
        table[:, START] += start
        start += len(packed.bits)
        bits.append(packed.bits)
        tables.append(table)
        frames += [[h, w, mirrored, upside_down]] * count
    found = unpack_batch(
        torch.from_numpy(np.concatenate(bits)),
        torch.from_numpy(np.concatenate(tables)),
        torch.tensor(frames, dtype=torch.int32).view(-1, 4),
        (height, width),
        mirrored=any(frame[2] for frame in frames),
    )
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), np.concatenate(expected))


def test_packed_masks_take_the_bytes_they_cover() -> None:
    masks = np.zeros((2, 100, 200), np.uint8)
    masks[0, 10:20, 16:32] = 1
    assert len(PackedMasks.of(masks).bits) == 10 * 2
