"""Masks encoded by runs are those that mmdet pastes and pycocotools encodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from sparsevit.openmmlab import mask_runs
from sparsevit.openmmlab.mask_runs import encode_masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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


def encoded(masks: list[np.ndarray]) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    made = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return [{"size": list(each["size"]), "counts": each["counts"].decode("ascii")} for each in made]


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    threshold=st.sampled_from([0.5, 0.3, 0.0]),
    at_once=st.sampled_from([1, 700, 1 << 20]),
)
def test_text_is_that_of_pycocotools(seed: int, height: int, width: int, threshold: float, at_once: int) -> None:
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
        found = encode_masks(masks, boxes, [size] * count, threshold)
    right = encoded(pasted(masks, boxes, size, threshold))
    assert [each["size"] for each in found] == [each["size"] for each in right]
    for got, wanted in zip(found, right, strict=True):
        assert differing_pixels(got, wanted) <= 2  # values at the threshold itself, which rounding decides
    exact = [got["counts"] == wanted["counts"] for got, wanted in zip(found, right, strict=True)]
    texts = encoded([decode(each) for each in found])
    assert found == texts
    assert sum(exact) >= 0.5 * count


def decode(entry: dict[str, Any]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode({**entry, "counts": entry["counts"].encode("ascii")}))


def differing_pixels(one: dict[str, Any], other: dict[str, Any]) -> int:
    return int((decode(one) != decode(other)).sum())


def test_images_of_different_sizes_and_long_runs() -> None:
    masks = torch.ones(3, 4, 4)
    boxes = np.array([[0, 0, 3000, 2000], [1, 1, 3, 3], [10, 5, 900, 700]], np.float32)
    sizes = [(2000, 3000), (4, 4), (800, 1000)]
    found = encode_masks(masks, boxes, sizes, 0.5)
    right = [encoded(pasted(masks[i : i + 1], boxes[i : i + 1], sizes[i], 0.5))[0] for i in range(3)]
    assert found == right
    assert encode_masks(masks[:0], boxes[:0], [], 0.5) == []


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((200, 28, 28), np.float32))
    low = rng.uniform(0, 300, (200, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 200, (200, 2))], 1).astype(np.float32)
    sizes = [(500, 500)] * 200
    here, there = (encode_masks(masks.to(device), boxes, sizes, 0.5) for device in ("cpu", "cuda"))
    assert sum(map(differing_pixels, here, there)) <= 100
