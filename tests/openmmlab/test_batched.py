"""Batched training heads compute what mmdet's own compute, image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.core import BitmapMasks, bbox_overlaps, build_assigner
from mmdet.models import build_detector

from sparsevit.data import digits
from sparsevit.openmmlab import batched_roi, batched_rpn
from sparsevit.openmmlab.batched import assign, pad_boxes, pairwise_iou, pick
from sparsevit.openmmlab.config import load_config
from sparsevit.openmmlab.masks import DeviceMasks

SIZE = (224, 224)


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 150
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 60], dim=1)


@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 5), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_assign_equals_mmdets_assigner(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.stack([random_boxes(40, generator) for _ in counts])
    truths = [random_boxes(count, generator) for count in counts]
    truth, real = pad_boxes(truths)
    matched, positive, negative = assign(boxes, truth, real, positive=0.5, negative=0.3, low_quality=0.2)
    assigner = build_assigner(dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.3, min_pos_iou=0.2))
    for i, own in enumerate(truths):
        expected = assigner.assign(boxes[i], own).gt_inds
        assert torch.equal(positive[i], expected > 0)
        assert torch.equal(negative[i], expected == 0)
        assert torch.equal(matched[i][positive[i]], expected[positive[i]] - 1)


def test_pairwise_iou_equals_mmdets() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, truth = random_boxes(20, generator), random_boxes(6, generator)
    torch.testing.assert_close(pairwise_iou(boxes[None], truth[None])[0], bbox_overlaps(boxes, truth))


@given(positives=st.integers(0, 30), negatives=st.integers(0, 30), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_pick_samples_as_random_sampler_does(positives: int, negatives: int, seed: int) -> None:
    torch.manual_seed(seed)
    kind = torch.tensor([1] * positives + [0] * negatives + [-1] * 4)[torch.randperm(positives + negatives + 4)]
    index, is_positive, used = pick((kind == 1)[None], (kind == 0)[None], 16, 0.25)
    chosen = index[0][used[0]]
    assert len(chosen.unique()) == len(chosen)
    assert int(is_positive.sum()) == min(positives, 4)
    assert int(used.sum()) == min(positives, 4) + min(negatives, 16 - min(positives, 4))
    assert torch.equal(kind[index[0]][used[0]] == 1, is_positive[0][used[0]])


def detectors() -> tuple[Any, Any]:
    """The built-in detector with batched heads and with mmdet's own, same weights, sampling everything."""
    torch.manual_seed(0)
    models = []
    for rpn, roi in (("BatchedRPNHead", "BatchedRoIHead"), ("RPNHead", "StandardRoIHead")):
        config = load_config("builtin:digits/mask_rcnn.py")
        config.model.rpn_head.type, config.model.roi_head.type = rpn, roi
        config.model.train_cfg.rpn.sampler.update(num=10**6, pos_fraction=0.5)
        config.model.train_cfg.rcnn.sampler.update(num=10**6, pos_fraction=0.5)
        models.append(build_detector(config.model))
    models[0].init_weights()
    models[1].load_state_dict(models[0].state_dict())
    return models[0], models[1]


@pytest.mark.parametrize("second", [SIZE, (150, 170)], ids=["one size", "two sizes"])
@pytest.mark.parametrize("multiple", [1, 64])
def test_losses_equal_mmdets_heads(second: tuple[int, int], multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_roi, "_masks_to_a_whole", lambda device: multiple)
    batched, stock = detectors()
    rendered = digits.render("train", digits.draw_scenes("train", 0, 0, 2, SIZE), SIZE)
    images = (rendered.images.float() - 120) / 58
    metas = [
        dict(img_shape=(*size, 3), pad_shape=tuple(-(-side // 32) * 32 for side in size), scale_factor=1.0)
        for size in (SIZE, second)
    ]
    common = dict(img=images, img_metas=metas, gt_bboxes=rendered.boxes, gt_labels=rendered.labels)
    ours = batched(**common, gt_masks=[DeviceMasks(masks) for masks in rendered.masks])
    theirs = stock(**common, gt_masks=[BitmapMasks(masks.numpy().astype("uint8"), *SIZE) for masks in rendered.masks])
    for name, value in theirs.items():
        expected = sum(value) if isinstance(value, list) else value
        torch.testing.assert_close(
            ours[name].mean(), expected.mean(), rtol=2e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


class Waits(TorchFunctionMode):
    """Notes the calls that make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("new_tensor", "nonzero", "item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("second", [SIZE, (150, 170)], ids=["one size", "two sizes"])
def test_proposals_losses_and_boxes_wait_for_nothing(second: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = detectors()[0]
    head, config = model.rpn_head, model.train_cfg.rpn_proposal
    levels = [
        torch.randn(2, head.in_channels, SIZE[0] // stride, SIZE[1] // stride)
        for stride, _ in head.prior_generator.strides
    ]
    metas = [dict(img_shape=(*size, 3), pad_shape=(*size, 3)) for size in (SIZE, second)]
    truth = [random_boxes(count, torch.Generator().manual_seed(0)) for count in (3, 0)]
    # On a GPU a kernel does this; what serves on a CPU goes from group to group.
    monkeypatch.setattr(batched_rpn, "grouped_nms", lambda boxes, threshold: boxes[..., 0] >= 0)
    for _ in range(2):  # the first time, anchors are made
        with Waits() as waits:
            head.forward_train(levels, metas, truth, proposal_cfg=config)
    assert waits.found == []
