"""Masks pasted as runs are those that mmdet pastes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from sparsevit.openmmlab import mask_runs
from sparsevit.openmmlab.mask_runs import Runs, paste_masks


def pasted(masks: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], threshold: float) -> list[np.ndarray]:
    """mmdet's own masks of an image."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    images = []
    for mask, box in zip(masks, torch.from_numpy(boxes), strict=True):
        image = torch.zeros(size, dtype=torch.bool)
        values, place = _do_paste_mask(mask[None, None], box[None], *size)
        image[place] = values[0] >= threshold
        images.append(image.numpy())
    return images


def drawn(runs: Runs, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """The masks as bitmaps, after a look at their runs."""
    assert runs.count == len(sizes)
    assert (runs.end > runs.begin).all()
    assert (runs.owner.diff() >= 0).all()
    assert ((runs.begin[1:] > runs.end[:-1]) | (runs.owner[1:] != runs.owner[:-1])).all()  # apart, and in order
    images = []
    for index, size in enumerate(sizes):
        flat = np.zeros(size[0] * size[1], bool)
        own = runs.owner == index
        for begin, end in zip(runs.begin[own].tolist(), runs.end[own].tolist(), strict=True):
            flat[begin:end] = True
        images.append(flat.reshape(size, order="F"))
    np.testing.assert_array_equal(runs.areas().tolist(), [image.sum() for image in images])
    return images


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    threshold=st.sampled_from([0.5, 0.3, 0.0]),
    at_once=st.sampled_from([1, 700, 1 << 20]),
)
def test_masks_are_those_of_mmdet(seed: int, height: int, width: int, threshold: float, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 6))
    corners = rng.uniform(-0.1, 1.1, (count, 2, 2)) * (width, height)
    corners = np.clip(np.sort(corners, axis=1), 0, (width, height))
    if rng.random() < 0.3:  # as large as the image: runs go on from column to column
        corners[:] = (0, 0), (width, height)
    if rng.random() < 0.2:  # without extent
        corners[:, 1, 0] = corners[:, 0, 0]
    boxes = corners.reshape(count, 4).astype(np.float32)
    masks = torch.from_numpy(rng.choice([0.0, 0.2, 0.8, 1.0], (count, 5, 7)).astype(np.float32))
    size = (height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_runs, "PIXELS_AT_ONCE", {"cpu": at_once})
        found = drawn(paste_masks(masks, boxes, np.array([size] * count).reshape(-1, 2), threshold), [size] * count)
    right = pasted(masks, boxes, size, threshold)
    differing = [int((one != other).sum()) for one, other in zip(found, right, strict=True)]
    assert all(pixels <= 2 for pixels in differing)  # values at the threshold itself, which rounding decides
    assert differing.count(0) >= 0.5 * count


def test_images_of_different_sizes_and_long_runs() -> None:
    masks = torch.ones(3, 4, 4)
    boxes = np.array([[0, 0, 3000, 2000], [1, 1, 3, 3], [10, 5, 900, 700]], np.float32)
    sizes = [(2000, 3000), (4, 4), (800, 1000)]
    found = drawn(paste_masks(masks, boxes, np.array(sizes), 0.5), sizes)
    for i, image in enumerate(found):
        np.testing.assert_array_equal(image, pasted(masks[i : i + 1], boxes[i : i + 1], sizes[i], 0.5)[0])
    nothing = paste_masks(masks[:0], boxes[:0], np.zeros((0, 2), np.int64), 0.5)
    assert nothing.count == len(nothing.owner) == len(nothing.areas()) == 0


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((200, 28, 28), np.float32))
    low = rng.uniform(0, 300, (200, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 200, (200, 2))], 1).astype(np.float32)
    sizes = [(500, 500)] * 200
    here, there = (paste_masks(masks.to(device), boxes, np.array(sizes), 0.5) for device in ("cpu", "cuda"))
    there = Runs(there.owner.cpu(), there.begin.cpu(), there.end.cpu(), there.count)
    assert sum((one != other).sum() for one, other in zip(drawn(here, sizes), drawn(there, sizes), strict=True)) <= 100
