"""A box and mask head that trains on all images of a batch at once; see `batched_rpn`.

B images, P candidate boxes of an image (padded), S samples of an image, G true boxes of an image (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.builder import HEADS
from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from sparsevit.openmmlab.batched import Proposals, assign, pad_boxes, pad_labels, pick
from sparsevit.openmmlab.box_coding import encode
from sparsevit.openmmlab.masks import joined
from sparsevit.openmmlab.roi_features import roi_features


@HEADS.register_module()
class BatchedRoIHead(StandardRoIHead):  # type: ignore[misc]  # mmdet is untyped
    """`StandardRoIHead` for training batches; weights are interchangeable with mmdet's, testing is mmdet's own."""

    def forward_train(
        self,
        x: list[Tensor],
        img_metas: list[dict[str, Any]],
        proposal_list: Sequence[Tensor],
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        gt_bboxes_ignore: Any = None,
        gt_masks: Sequence[Any] | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Box and mask losses; see mmdet's `StandardRoIHead.forward_train`."""
        truth, real = pad_boxes(gt_bboxes)
        background = self.bbox_head.num_classes
        labels = pad_labels(gt_labels, truth.shape[1], background)
        boxes, owner, is_positive, used = self._sample(Proposals.of(proposal_list), truth, real)
        label = torch.where(is_positive, labels.gather(1, owner), background).view(-1)
        image = torch.arange(len(truth), device=boxes.device).repeat_interleave(boxes.shape[1])
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes.view(-1, 4)], dim=1)
        own_truth = truth.gather(1, owner[..., None].expand(*owner.shape, 4)).view(-1, 4)
        losses = self._box_losses(x, rois, label, own_truth, is_positive.view(-1), used.view(-1))
        if self.with_mask:
            assert gt_masks is not None
            chosen = is_positive.view(-1).nonzero().squeeze(1)  # the one wait for the device: how many there are
            first = real.sum(dim=1).cumsum(0) - real.sum(dim=1)  # index of each image's first mask among all masks
            instance = (first[:, None] + owner).view(-1)[chosen]
            whole = F.pad(chosen, (0, -len(chosen) % _masks_to_a_whole(chosen.device)))  # with any box: the first
            predicted = self.mask_head(roi_features(self.mask_roi_extractor, x, rois[whole]))[: len(chosen)].float()
            target = self._mask_targets(gt_masks, instance, rois[chosen, 1:])
            losses.update(self.mask_head.loss(predicted, target, label[chosen]))
        return losses

    def _sample(self, proposals: Proposals, truth: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes to train on `(B, S, 4)`, the true box each is matched with, which are positive, which are in use."""
        thresholds, rules = self.train_cfg.assigner, self.train_cfg.sampler
        matched, positive, negative = assign(
            proposals.boxes,
            truth,
            real,  # padded proposals have no area, hence no overlap, so they claim nothing
            positive=thresholds.pos_iou_thr,
            negative=thresholds.neg_iou_thr,
            low_quality=thresholds.get("min_pos_iou", 0.0) if thresholds.get("match_low_quality", True) else None,
        )
        candidates = proposals.boxes
        positive, negative = positive & proposals.present, negative & proposals.present
        if rules.get("add_gt_as_proposals", True):
            own = torch.arange(truth.shape[1], device=truth.device).expand(len(truth), -1)
            candidates, matched = torch.cat([truth, candidates], 1), torch.cat([own, matched], 1)
            positive = torch.cat([real, positive], 1)
            negative = torch.cat([torch.zeros_like(real), negative], 1)
        index, is_positive, used = pick(positive, negative, rules.num, rules.pos_fraction)
        boxes = candidates.gather(1, index[..., None].expand(*index.shape, 4))
        return boxes, matched.gather(1, index), is_positive, used

    def _box_losses(
        self, x: list[Tensor], rois: Tensor, label: Tensor, truth: Tensor, is_positive: Tensor, used: Tensor
    ) -> dict[str, Tensor]:
        """mmdet's `BBoxHead.loss` at a fixed number of boxes; those that it would leave out weigh nothing."""
        head = self.bbox_head
        scores, deltas = (each.float() for each in head(roi_features(self.bbox_roi_extractor, x, rois)))
        total = used.sum().clamp(min=1)
        if not head.reg_class_agnostic:
            own = label.clamp(max=head.num_classes - 1)[:, None, None].expand(-1, 1, 4)
            deltas = deltas.view(len(deltas), -1, 4).gather(1, own).squeeze(1)
        weight = is_positive[:, None].float().expand(-1, 4)
        # A box that is not positive has no true box: its target is whatever it predicts.
        target = torch.where(weight > 0, encode(head.bbox_coder, rois[:, 1:], truth), deltas.detach())
        return {
            "loss_cls": head.loss_cls(scores, label, used.float(), avg_factor=total),
            "acc": 100 * ((scores.argmax(dim=1) == label) & used).sum() / total,
            "loss_bbox": head.loss_bbox(deltas, target, weight, avg_factor=total),
        }

    def _mask_targets(self, gt_masks: Sequence[Any], instance: Tensor, boxes: Tensor) -> Tensor:
        """Each box's own mask, cropped and resized, `(n, size, size)` of 0 and 1."""
        masks = joined(gt_masks, boxes.device).float()
        rois = torch.cat([instance[:, None].to(boxes.dtype), boxes], dim=1)
        cropped = roi_align(masks[:, None], rois, _pair(self.train_cfg.mask_size), 1.0, 0, True)[:, 0]
        target: Tensor = (cropped >= 0.5).float()
        return target


def _masks_to_a_whole(device: torch.device) -> int:
    """Of what the number of masks that are predicted is made a multiple.

    For every number that it has not seen, cuDNN plans each convolution anew, a millisecond or two of the host each.
    """
    return 64 if device.type == "cuda" else 1


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
