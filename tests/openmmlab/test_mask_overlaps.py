"""Pixels that masks share, and masks read from COCO's forms, are as pycocotools has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from sparsevit.openmmlab.mask_overlaps import TrueMasks, all_runs, runs_of
from sparsevit.openmmlab.mask_runs import Runs


def blotches(rng: np.random.Generator, count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Masks with runs of all lengths; some empty, some full."""
    masks = []
    for _ in range(count):
        mask = rng.random((size[0] // 5 + 1, size[1] // 5 + 1)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        masks.append(np.kron(mask, np.ones((5, 5), bool))[: size[0], : size[1]])
    return masks


def encoded(masks: list[np.ndarray]) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


@given(seed=st.integers(0, 10**6), height=st.integers(1, 70), width=st.integers(1, 70))
def test_runs_of_every_form(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    for mask, code in zip((masks := blotches(rng, 3, (height, width))), encoded(masks), strict=True):
        flat = mask.ravel(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
        counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        for form in (mask, code, {**code, "counts": code["counts"].decode("ascii")}, {**code, "counts": counts}):
            begin, end = runs_of(form)
            np.testing.assert_array_equal(begin, edges[::2])
            np.testing.assert_array_equal(end, edges[1::2])


def check(seed: int, found: int, truth: int, size: tuple[int, int], device: str) -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    ours, theirs = blotches(rng, found, size), blotches(rng, truth, size)
    crowd = rng.random(truth) < 0.3
    expected = np.zeros((found, truth))
    if found and truth:
        expected = coco_mask.iou(encoded(ours), encoded(theirs), crowd.tolist())
    masks = TrueMasks([runs_of(mask) for mask in theirs], np.full(truth, size[0] * size[1]), torch.device(device))
    runs = all_runs(ours)
    runs = Runs(runs.owner.to(device), runs.begin.to(device), runs.end.to(device), runs.count)
    detection, other = (torch.from_numpy(each.ravel()) for each in np.indices((found, truth)))
    order = torch.randperm(len(other), generator=torch.Generator().manual_seed(seed))
    detection, other = detection[order], other[order]
    overlaps = masks.overlaps(runs, detection.to(device), other.to(device), torch.from_numpy(crowd)[other].to(device))
    np.testing.assert_array_equal(overlaps.cpu().numpy(), expected[detection, other])


@given(
    seed=st.integers(0, 10**6),
    found=st.integers(0, 5),
    truth=st.integers(0, 5),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
)
def test_overlaps(seed: int, found: int, truth: int, height: int, width: int) -> None:
    check(seed, found, truth, (height, width), "cpu")


@pytest.mark.gpu
def test_overlaps_on_a_gpu() -> None:
    check(0, 40, 30, (300, 200), "cuda")
