"""Masks on the device are cropped as mmdet crops them on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.core import BitmapMasks
from sparsevit.openmmlab.masks import DeviceMasks, joined


@given(seed=st.integers(0, 1000), boxes=st.integers(1, 5), side=st.sampled_from([1, 7, 28]))
def test_crop_and_resize_equals_mmdets(seed: int, boxes: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 40, 50)) < 0.6
    corner = rng.random((boxes, 2)) * [40, 30]
    rois = np.concatenate([corner, corner + 1 + rng.random((boxes, 2)) * 15], axis=1).astype(np.float32)
    index = rng.integers(3, size=boxes)
    device = DeviceMasks(torch.from_numpy(masks))
    assert (len(device), device.height, device.width) == (3, 40, 50)
    for binarize in (True, False):
        ours = device.crop_and_resize(rois, (side, side), index, binarize=binarize)
        theirs = BitmapMasks(masks.astype(np.uint8), 40, 50).crop_and_resize(
            rois, (side, side), index, device="cpu", binarize=binarize
        )
        np.testing.assert_allclose(ours.to_ndarray(), theirs.to_ndarray(), atol=1e-6)


def test_masks_of_images_of_different_sizes_are_joined_in_the_top_left_corner() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 20, 30)) < 0.5, rng.random((1, 25, 10)) < 0.5
    masks = joined(
        [DeviceMasks(torch.from_numpy(first)), BitmapMasks(second.astype(np.uint8), 25, 10)], torch.device("cpu")
    )
    assert masks.dtype == torch.bool
    assert masks.shape == (3, 25, 30)
    np.testing.assert_array_equal(masks[:2, :20].numpy(), first)
    np.testing.assert_array_equal(masks[2, :, :10].numpy(), second[0])
    assert int(masks.sum()) == first.sum() + second.sum()
