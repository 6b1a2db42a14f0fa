"""Testing a two-stage detector on all images of a batch at once; mmdet's heads do it image by image.

The rules and the detections are mmdet's: proposals by level, NMS by class, the best of all classes. Shapes are fixed,
so nothing waits for the device until what was found is copied to the host, once a batch.

B images, P proposals of an image (padded), K classes, M detections of an image (padded), R present ones of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sparsevit.openmmlab.batched import Proposals
from sparsevit.openmmlab.batched_roi import BatchedRoIHead
from sparsevit.openmmlab.batched_rpn import BatchedRPNHead, propose
from sparsevit.openmmlab.detections import Detections
from sparsevit.openmmlab.grouped_nms import grouped_nms
from sparsevit.openmmlab.mask_runs import Runs, paste_masks
from sparsevit.openmmlab.roi_features import roi_features

Metas = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a batch, still on the device.

    Attributes:
        packed: box in pixels of the original image, score and label of each detection, best first, `(B, M, 6)`; score
            0 where there is none.
        levels: feature maps, for the masks.
    """

    packed: Tensor
    levels: Sequence[Tensor]
    metas: Metas


class BatchedTest:
    """Runs one detector; see `fits` for which."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.masks = bool(model.with_mask)

    def detect(self, features: Sequence[Tensor], metas: Metas) -> Found:
        """Boxes of the images whose backbone's maps these are. Does not wait for the device."""
        model = self.model
        levels = list(model.neck(features) if model.with_neck else features)
        sizes = [tuple(meta["img_shape"][:2]) for meta in metas]
        scores, deltas = model.rpn_head(levels)
        proposals = propose(model.rpn_head, scores, deltas, sizes, model.rpn_head.test_cfg)
        return Found(self._boxes(levels, proposals, metas), levels, metas)

    def detections(
        self, found: Found, packed: NDArray[np.float32], images: Sequence[int], *, masks: bool
    ) -> Detections:
        """What `simple_test` gives; `packed` is `found.packed` on the host, `images` are the batch's indices."""
        place, _ = present = (packed[..., 4] > 0).nonzero()
        rows = packed[present]
        label = rows[:, 5].astype(np.int64)
        drawn: dict[str, Any] = {}
        if masks:
            size = np.array([meta["ori_shape"][:2] for meta in found.metas], np.int64)[place]
            drawn = {"masks": self._masks(found, rows, label, place, size), "size": size}
        return Detections(np.asarray(images, np.int64)[place], label, rows[:, :4], rows[:, 4], **drawn)

    def _boxes(self, levels: list[Tensor], proposals: Proposals, metas: Metas) -> Tensor:
        head, rules = self.model.roi_head.bbox_head, self.model.roi_head.test_cfg
        images, count = proposals.scores.shape
        features = roi_features(self.model.roi_head.bbox_roi_extractor, levels, _rois(proposals.boxes))
        logits, deltas = (each.float() for each in head(features))
        scores = F.softmax(logits, dim=-1)[:, :-1].view(images, count, -1).transpose(1, 2)
        boxes = head.bbox_coder.decode(proposals.boxes.view(-1, 4), deltas).view(images, count, -1, 4)
        if head.bbox_coder.clip_border:
            limits = _per_image([meta["img_shape"][1::-1] * 2 for meta in metas], boxes)
            boxes = torch.minimum(boxes.clamp(min=0), limits)
        boxes = boxes / _per_image([meta["scale_factor"] for meta in metas], boxes)
        boxes = boxes.transpose(1, 2).expand(-1, scores.shape[1], -1, -1)
        valid = (scores > rules.score_thr) & proposals.present[:, None]
        top, index = torch.where(valid, scores, -1.0).sort(dim=-1, descending=True, stable=True)
        if not top.is_cuda:  # there it costs a wait; here it spares most of the work
            most = int(valid.sum(dim=-1).max())
            top, index = top[..., :most], index[..., :most]
        boxes = boxes.gather(2, index[..., None].expand(*index.shape, 4))
        # One class of one image is a group. What is not valid has no area, so it suppresses nothing.
        ranked = torch.where((top > 0)[..., None], boxes, 0.0)
        stays = grouped_nms(ranked.flatten(0, 1), rules.nms.iou_threshold).view_as(top) & (top > 0)
        flat = torch.where(stays, top, 0.0).flatten(1)
        best, place = flat.topk(min(rules.max_per_img, flat.shape[1]), dim=1)
        chosen = boxes.flatten(1, 2).gather(1, place[..., None].expand(*place.shape, 4))
        label = torch.div(place, max(top.shape[-1], 1), rounding_mode="floor")
        return torch.cat([chosen, best[..., None], label[..., None].to(chosen.dtype)], dim=-1)

    def _masks(
        self,
        found: Found,
        rows: NDArray[np.float32],
        labels: NDArray[np.int64],
        image: NDArray[np.int64],
        size: NDArray[np.int64],
    ) -> Runs:
        """The masks of detections `(R, 6)` of images `(R,)` of the batch, whose sizes are `(R, 2)`."""
        roi_head, device = self.model.roi_head, found.packed.device
        if not len(rows):
            return Runs.joined([], device)
        scales = np.stack([np.asarray(meta["scale_factor"], np.float32) for meta in found.metas])[image]
        rois = np.concatenate([image[:, None].astype(np.float32), rows[:, :4] * scales], axis=1)
        features = roi_features(
            roi_head.mask_roi_extractor, found.levels, torch.from_numpy(rois).to(device, non_blocking=True)
        )
        predicted = roi_head.mask_head(features).float().sigmoid()
        if predicted.shape[1] > 1:
            own = torch.from_numpy(labels).to(device, non_blocking=True)
            predicted = predicted[torch.arange(len(own), device=device), own]
        else:
            predicted = predicted[:, 0]
        return paste_masks(predicted, rows[:, :4], size, roi_head.test_cfg.mask_thr_binary)


def fits(model: nn.Module) -> bool:
    """Whether a detector's rules of testing are those that `BatchedTest` follows; others stay with mmdet's own."""
    if not isinstance(model, TwoStageDetector) or type(model).simple_test is not TwoStageDetector.simple_test:
        return False
    rpn, roi = model.rpn_head, model.roi_head
    return (
        type(rpn) in (RPNHead, BatchedRPNHead)
        and rpn.use_sigmoid_cls
        and _named(rpn.prior_generator, "AnchorGenerator")
        and _named(rpn.bbox_coder, "DeltaXYWHBBoxCoder")
        and _plain_nms(rpn.test_cfg)
        and rpn.test_cfg.get("nms_pre", -1) > 0
        and type(roi) in (StandardRoIHead, BatchedRoIHead)
        and not roi.with_shared_head
        and _boxes_fit(roi)
        and (not roi.with_mask or _masks_fit(roi))
    )


def _boxes_fit(roi: Any) -> bool:
    box = roi.bbox_head
    return (
        _named(box, "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
        and box.with_cls
        and box.with_reg
        and not box.custom_cls_channels
        and _named(box.bbox_coder, "DeltaXYWHBBoxCoder")
        and _pools_plainly(roi.bbox_roi_extractor)
        and _plain_nms(roi.test_cfg)
        and roi.test_cfg.get("score_thr", -1) >= 0
    )


def _masks_fit(roi: Any) -> bool:
    return (
        _named(roi.mask_head, "FCNMaskHead")
        and _pools_plainly(roi.mask_roi_extractor)
        and roi.test_cfg.get("mask_thr_binary", -1) >= 0
    )


def _pools_plainly(extractor: Any) -> bool:
    return _named(extractor, "SingleRoIExtractor") and all(
        _named(layer, "RoIAlign") and layer.pool_mode == "avg" for layer in extractor.roi_layers
    )


def _plain_nms(rules: Any) -> bool:
    nms = rules.get("nms") or {}
    return set(nms) == {"type", "iou_threshold"} and nms["type"] == "nms" and rules.get("max_per_img", -1) > 0


def _named(part: Any, *names: str) -> bool:
    """A class by its name: a subclass may do something else."""
    return type(part).__name__ in names


def _rois(boxes: Tensor) -> Tensor:
    """Boxes `(B, P, 4)` with the index of their image in front, `(B * P, 5)`."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype).repeat_interleave(boxes.shape[1])
    return torch.cat([image[:, None], boxes.view(-1, 4)], dim=1)


def _per_image(values: Sequence[Any], like: Tensor) -> Tensor:
    """Four numbers of each image, to go with boxes `(B, n, k, 4)`."""
    rows = torch.from_numpy(np.stack([np.asarray(each, np.float32) for each in values]))
    return rows.to(like.device, non_blocking=True)[:, None, None]
