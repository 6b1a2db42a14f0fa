"""A box and mask head that trains on all images of a batch at once; see `batched_rpn`.

B images, P candidate boxes of an image (padded), S samples of an image, G true boxes of an image (padded).
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.builder import HEADS
from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor
from torchvision.ops import roi_align

from sparsevit.openmmlab.batched import assign, pad_boxes, pick
from sparsevit.openmmlab.masks import DeviceMasks


@HEADS.register_module()
class BatchedRoIHead(StandardRoIHead):  # type: ignore[misc]  # mmdet is untyped
    """`StandardRoIHead` for training batches; weights are interchangeable with mmdet's, testing is mmdet's own."""

    def forward_train(
        self,
        x: list[Tensor],
        img_metas: list[dict[str, Any]],
        proposal_list: list[Tensor],
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        gt_bboxes_ignore: Any = None,
        gt_masks: list[DeviceMasks] | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Box and mask losses; see mmdet's `StandardRoIHead.forward_train`."""
        truth, real = pad_boxes(gt_bboxes)
        proposals, proposed = pad_boxes(proposal_list)
        rules = self.train_cfg.sampler
        candidates, present = proposals, proposed
        if rules.get("add_gt_as_proposals", True):
            candidates, present = torch.cat([truth, proposals], 1), torch.cat([real, proposed], 1)
        thresholds = self.train_cfg.assigner
        matched, positive, negative = assign(
            candidates,
            truth,
            real,
            positive=thresholds.pos_iou_thr,
            negative=thresholds.neg_iou_thr,
            low_quality=None,  # a true box is a candidate for itself
        )
        index, is_positive, used = pick(positive & present, negative & present, rules.num, rules.pos_fraction)
        boxes = candidates.gather(1, index[..., None].expand(*index.shape, 4)).view(-1, 4)
        owner = matched.gather(1, index)
        image = torch.arange(len(truth), device=boxes.device).repeat_interleave(index.shape[1])
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
        labels = torch.full_like(real, self.bbox_head.num_classes, dtype=torch.long)
        labels[real] = torch.cat(gt_labels)
        label = torch.where(is_positive, labels.gather(1, owner), self.bbox_head.num_classes).view(-1)
        own_truth = truth.gather(1, owner[..., None].expand(*owner.shape, 4)).view(-1, 4)
        chosen = is_positive.view(-1).nonzero().squeeze(1)
        target = torch.zeros_like(boxes)
        target[chosen] = self.bbox_head.bbox_coder.encode(boxes[chosen], own_truth[chosen])
        weight = is_positive.view(-1, 1).float().expand(-1, 4)
        kept = used.view(-1).nonzero().squeeze(1)  # all of them, unless an image has very few proposals
        found = self._bbox_forward(x, rois[kept])
        losses: dict[str, Tensor] = self.bbox_head.loss(
            found["cls_score"].float(),
            found["bbox_pred"].float(),
            rois[kept],
            label[kept],
            torch.ones_like(kept, dtype=torch.float),
            target[kept],
            weight[kept],
        )
        if self.with_mask:
            assert gt_masks is not None
            first = real.sum(dim=1).cumsum(0) - real.sum(dim=1)  # index of each image's first mask among all masks
            instance = (first[:, None] + owner).view(-1)[chosen]
            predicted = self._mask_forward(x, rois[chosen])["mask_pred"].float()
            mask_target = self._mask_targets(gt_masks, instance, boxes[chosen])
            losses.update(self.mask_head.loss(predicted, mask_target, label[chosen]))
        return losses

    def _mask_targets(self, gt_masks: list[DeviceMasks], instance: Tensor, boxes: Tensor) -> Tensor:
        """Each box's own mask, cropped and resized, `(n, size, size)` of 0 and 1."""
        masks = torch.cat([each.masks for each in gt_masks]).float()
        rois = torch.cat([instance[:, None].to(boxes.dtype), boxes], dim=1)
        size = self.train_cfg.mask_size
        cropped = roi_align(masks[:, None], rois, (size, size), 1.0, 0, True)[:, 0]
        target: Tensor = (cropped >= 0.5).float()
        return target
