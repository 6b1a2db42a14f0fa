"""A region proposal head that assigns and samples targets for all images of a batch at once.

mmdet's own does so image by image, with dozens of kernel launches and several waits for the device each; on a small
model that is most of the time. The rules are the same: `MaxIoUAssigner`, `RandomSampler`, per-level top-k, NMS.

B images, A anchors over all levels, G boxes of an image (padded).
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import RPNHead
from torch import Tensor
from torchvision.ops import batched_nms

from sparsevit.openmmlab.batched import assign, pad_boxes, pick


@HEADS.register_module()
class BatchedRPNHead(RPNHead):  # type: ignore[misc]  # mmdet is untyped
    """`RPNHead` for training batches of images of one size; weights and results are interchangeable with mmdet's."""

    def loss(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        gt_bboxes: list[Tensor],
        img_metas: list[dict[str, Any]],
        gt_bboxes_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """Objectness and box losses; see mmdet's `RPNHead.loss`."""
        anchors = torch.cat(self._anchors(cls_scores))
        scores = torch.cat([_flat(level, 1) for level in cls_scores], dim=1).squeeze(-1).float()
        deltas = torch.cat([_flat(level, 4) for level in bbox_preds], dim=1).float()
        truth, real = pad_boxes(gt_bboxes)
        rules = self.train_cfg.assigner
        matched, positive, negative = assign(
            anchors.expand(len(truth), -1, -1),
            truth,
            real,
            positive=rules.pos_iou_thr,
            negative=rules.neg_iou_thr,
            low_quality=rules.min_pos_iou if rules.get("match_low_quality", True) else None,
        )
        count, share = self.train_cfg.sampler.num, self.train_cfg.sampler.pos_fraction
        index, is_positive, used = pick(positive, negative, count, share)
        chosen_scores = scores.gather(1, index)
        total = used.sum().clamp(min=1)
        loss_cls = self.loss_cls(
            chosen_scores.reshape(-1, 1), (~is_positive).long().view(-1), used.float().view(-1), avg_factor=total
        )
        target = self.bbox_coder.encode(
            anchors[index].view(-1, 4), truth.gather(1, _four(matched.gather(1, index))).view(-1, 4)
        )
        predicted = deltas.gather(1, _four(index)).view(-1, 4)
        weight = is_positive.view(-1, 1).float().expand(-1, 4)
        loss_bbox = self.loss_bbox(
            predicted, torch.where(weight > 0, target, predicted.detach()), weight, avg_factor=total
        )
        return {"loss_rpn_cls": loss_cls, "loss_rpn_bbox": loss_bbox}

    @torch.no_grad()
    def proposals(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], size: tuple[int, int], cfg: Any
    ) -> list[Tensor]:
        """Proposals of each image with their scores, `(n, 5)`, best first."""
        boxes, scores, levels = [], [], []
        for level, (anchors, score, delta) in enumerate(
            zip(self._anchors(cls_scores), cls_scores, bbox_preds, strict=True)
        ):
            flat = _flat(score.detach(), 1).squeeze(-1).float().sigmoid()
            top, index = flat.topk(min(cfg.nms_pre, flat.shape[1]), dim=1)
            chosen = _flat(delta.detach(), 4).float().gather(1, _four(index))
            decoded = self.bbox_coder.decode(anchors[index].view(-1, 4), chosen.view(-1, 4), max_shape=size)
            boxes.append(decoded.view(*index.shape, 4))
            scores.append(top)
            levels.append(torch.full_like(index[0], level))
        all_boxes, all_scores, level_of = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels)
        found = []
        for box, score in zip(all_boxes, all_scores, strict=True):
            kept = batched_nms(box, score, level_of, cfg.nms.iou_threshold)[: cfg.max_per_img]
            found.append(torch.cat([box[kept], score[kept, None]], dim=1))
        return found

    def forward_train(
        self,
        x: list[Tensor],
        img_metas: list[dict[str, Any]],
        gt_bboxes: list[Tensor],
        gt_labels: Any = None,
        gt_bboxes_ignore: Any = None,
        proposal_cfg: Any = None,
        **_: Any,
    ) -> Any:
        """Losses, and proposals where `proposal_cfg` is given; see mmdet's `BaseDenseHead.forward_train`."""
        scores, deltas = self(x)
        losses = self.loss(scores, deltas, gt_bboxes, img_metas)
        if proposal_cfg is None:
            return losses
        return losses, self.proposals(scores, deltas, img_metas[0]["img_shape"][:2], proposal_cfg)

    def _anchors(self, levels: list[Tensor]) -> list[Tensor]:
        sizes = [level.shape[-2:] for level in levels]
        anchors: list[Tensor] = self.prior_generator.grid_priors(sizes, device=levels[0].device)
        return anchors


def _flat(level: Tensor, width: int) -> Tensor:
    """`(B, anchors * width, H, W)` to `(B, H * W * anchors, width)`, in the order of the anchors."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, width)


def _four(index: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(*index.shape, 4)
