"""Which heads of a detector train faster as `batched_rpn` and `batched_roi` have them, with the same losses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def with_fast_heads(config: Any) -> Any:
    """A copy of the config with mmdet's proposal and RoI heads replaced where the batched ones follow the same rules.

    Weights, losses and results are the same. A head that asks for rules of its own (another assigner or sampler, online
    mining, soft NMS, ignored regions) stays mmdet's.
    """
    config = copy.deepcopy(config)
    model = config.model
    train = model.get("train_cfg") or config.get("train_cfg") or {}
    rpn, roi = model.get("rpn_head"), model.get("roi_head")
    if _is(rpn, "RPNHead") and _batched_rpn(rpn, train):
        rpn["type"] = "BatchedRPNHead"
    if _is(roi, "StandardRoIHead") and _batched_roi(roi, train):
        roi["type"] = "BatchedRoIHead"
    return config


def _batched_rpn(head: Any, train: Any) -> bool:
    rules: Any = train.get("rpn") or {}
    proposals: Any = train.get("rpn_proposal") or {}
    return (
        _assigns_and_samples(rules)
        and not rules.sampler.get("add_gt_as_proposals", True)
        and rules.get("allowed_border", -1) < 0
        and _is(head.get("anchor_generator"), "AnchorGenerator")
        and _is(head.get("bbox_coder"), "DeltaXYWHBBoxCoder")
        and not head.get("reg_decoded_bbox", False)
        and bool(head.get("loss_cls", {}).get("use_sigmoid", True))
        and _is(proposals.get("nms"), "nms")
        and "max_per_img" in proposals
        and proposals.get("nms_pre", -1) > 0
    )


def _batched_roi(head: Any, train: Any) -> bool:
    box, mask = head.get("bbox_head") or {}, head.get("mask_head")
    extractors = [head.get("bbox_roi_extractor"), *([head.get("mask_roi_extractor")] if mask else [])]
    return (
        _assigns_and_samples(train.get("rcnn") or {})
        and isinstance(box, Mapping)
        and box.get("type") in ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead")
        and not box.get("reg_decoded_bbox", False)
        and _is(box.get("bbox_coder", {"type": "DeltaXYWHBBoxCoder"}), "DeltaXYWHBBoxCoder")
        and _is(box.get("loss_cls", {"type": "CrossEntropyLoss"}), "CrossEntropyLoss")
        and not box.get("loss_cls", {}).get("use_sigmoid", False)
        and (mask is None or _is(mask, "FCNMaskHead"))
        and "shared_head" not in head
        and all(
            _is(each, "SingleRoIExtractor")
            and _is(each["roi_layer"], "RoIAlign")
            and each["roi_layer"].get("pool_mode", "avg") == "avg"
            for each in extractors
        )
    )


def _assigns_and_samples(rules: Any) -> bool:
    """Whether `train_cfg.rpn` or `.rcnn` asks for `MaxIoUAssigner` and `RandomSampler` with none of their extras."""
    assigner: Any = rules.get("assigner")
    sampler: Any = rules.get("sampler")
    return (
        _is(assigner, "MaxIoUAssigner")
        and _is(sampler, "RandomSampler")
        and isinstance(assigner["neg_iou_thr"], float | int)
        and assigner.get("ignore_iof_thr", -1) <= 0
        and assigner.get("gt_max_assign_all", True)
        and "iou_calculator" not in assigner
        and sampler.get("neg_pos_ub", -1) < 0
        and rules.get("pos_weight", -1) <= 0
    )


def _is(part: Any, kind: str) -> bool:
    return isinstance(part, Mapping) and part.get("type") == kind
