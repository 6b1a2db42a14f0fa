"""A region proposal head that assigns and samples targets for all images of a batch at once.

mmdet's own does so image by image, with dozens of kernel launches and several waits for the device each; that is most
of the time of an iteration. The rules are the same: `MaxIoUAssigner`, `RandomSampler`, per-level top-k, NMS.

B images, A anchors over all levels, L levels, N best anchors of a level (padded), G boxes of an image (padded).
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import RPNHead
from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor
from torch.nn import functional as F

from sparsevit.openmmlab.anchor_grid import AnchorGrid
from sparsevit.openmmlab.batched import Proposals, assign, pad_boxes, pick
from sparsevit.openmmlab.box_coding import decode, encode
from sparsevit.openmmlab.grouped_nms import grouped_nms


@HEADS.register_module()
class BatchedRPNHead(RPNHead):  # type: ignore[misc]  # mmdet is untyped
    """`RPNHead` for training whole batches; weights and results are interchangeable with mmdet's."""

    _grid: AnchorGrid | None = None

    def loss(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        gt_bboxes: list[Tensor],
        img_metas: list[dict[str, Any]],
        gt_bboxes_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """Objectness and box losses; see mmdet's `RPNHead.loss`."""
        grid = self._grid_of(cls_scores)
        anchors = grid.together
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
            low_quality=rules.get("min_pos_iou", 0.0) if rules.get("match_low_quality", True) else None,
            among=grid.inside([meta["pad_shape"][:2] for meta in img_metas]),
        )
        count, share = self.train_cfg.sampler.num, self.train_cfg.sampler.pos_fraction
        index, is_positive, used = pick(positive, negative, count, share)
        chosen_scores = scores.gather(1, index)
        total = used.sum().clamp(min=1)
        # mmdet's labels are 0 for objects and 1 for none. Its cross entropy turns those into 1 and 0, with a wait for
        # the device, unless they have the scores' shape and are that already.
        plain = isinstance(self.loss_cls, CrossEntropyLoss)
        loss_cls = self.loss_cls(
            chosen_scores.reshape((-1,) if plain else (-1, 1)),
            (is_positive if plain else ~is_positive).long().view(-1),
            used.float().view(-1),
            avg_factor=total,
        )
        target = encode(self.bbox_coder, anchors[index], truth.gather(1, _four(matched.gather(1, index)))).view(-1, 4)
        predicted = deltas.gather(1, _four(index)).view(-1, 4)
        weight = is_positive.view(-1, 1).float().expand(-1, 4)
        loss_bbox = self.loss_bbox(
            predicted, torch.where(weight > 0, target, predicted.detach()), weight, avg_factor=total
        )
        return {"loss_rpn_cls": loss_cls, "loss_rpn_bbox": loss_bbox}

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
        sizes = [tuple(meta["img_shape"][:2]) for meta in img_metas]
        return losses, propose(self, scores, deltas, sizes, proposal_cfg, self._grid_of(scores))

    def _grid_of(self, levels: list[Tensor]) -> AnchorGrid:
        self._grid = AnchorGrid.of(self.prior_generator, levels, self._grid)
        return self._grid


@torch.no_grad()
def propose(
    head: Any,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    sizes: list[tuple[int, int]],
    cfg: Any,
    grid: AnchorGrid | None = None,
) -> Proposals:
    """Proposals of each image, best first, as mmdet's `RPNHead` makes them image by image.

    Args:
        head: an `RPNHead` of anchors.
        sizes: height and width of each image without its padding, in pixels; proposals are clipped to them.
        grid: the head's anchors, where they are known.
    """
    grid = grid or AnchorGrid.of(head.prior_generator, cls_scores)
    levels = list(zip(grid.levels, cls_scores, bbox_preds, strict=True))
    most = max(min(cfg.nms_pre, len(anchors)) for anchors, _, _ in levels)
    found, scores, counts = [], [], []
    for anchors, score, delta in levels:
        flat = _flat(score.detach(), 1).squeeze(-1).float().sigmoid()
        top, index = flat.topk(min(cfg.nms_pre, flat.shape[1]), dim=1)
        found.append((anchors[index], _flat(delta.detach(), 4).float().gather(1, _four(index))))
        counts.append(index.shape[1])
        # One level of one image is a group, and all groups are padded to the same number of boxes.
        scores.append(F.pad(top, (0, most - counts[-1]), value=-1.0))
    chosen, deltas = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
    decoded = torch.split(decode(head.bbox_coder, chosen, deltas, sizes), counts, dim=1)
    boxes = [F.pad(each, (0, 0, 0, most - each.shape[1])) for each in decoded]
    all_boxes, all_scores = torch.stack(boxes, 1), torch.stack(scores, 1)
    present = all_scores >= 0
    if cfg.get("min_bbox_size", -1) >= 0:
        present &= ((all_boxes[..., 2:] - all_boxes[..., :2]) > cfg.min_bbox_size).all(dim=-1)
        all_boxes = torch.where(present[..., None], all_boxes, 0.0)  # without area: suppresses nothing
    present &= grouped_nms(all_boxes.flatten(0, 1), cfg.nms.iou_threshold).view_as(present)
    ranked = torch.where(present, all_scores, -1.0).flatten(1)
    top, index = ranked.topk(min(cfg.max_per_img, ranked.shape[1]), dim=1)
    return Proposals(all_boxes.flatten(1, 2).gather(1, _four(index)), top, top >= 0)


def _flat(level: Tensor, width: int) -> Tensor:
    """`(B, anchors * width, H, W)` to `(B, H * W * anchors, width)`, in the order of the anchors."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, width)


def _four(index: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(*index.shape, 4)
