"""Heads are replaced by faster ones exactly where those follow the same rules."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.openmmlab.config import load_config
from sparsevit.openmmlab.fast_heads import with_fast_heads


def stock_config() -> Any:
    config = load_config("builtin:digits/mask_rcnn.py")
    config.model.rpn_head.type, config.model.roi_head.type = "RPNHead", "StandardRoIHead"
    return config


def heads(config: Any) -> tuple[str, str]:
    fast = with_fast_heads(config)
    return fast.model.rpn_head.type, fast.model.roi_head.type


def test_mdets_standard_heads_are_replaced_in_a_copy() -> None:
    config = stock_config()
    assert heads(config) == ("BatchedRPNHead", "BatchedRoIHead")
    assert config.model.rpn_head.type == "RPNHead"


def test_a_detector_without_masks_or_without_proposals() -> None:
    config = stock_config()
    del config.model.roi_head["mask_head"], config.model.roi_head["mask_roi_extractor"]
    assert heads(config) == ("BatchedRPNHead", "BatchedRoIHead")
    del config.model["roi_head"], config.model["rpn_head"]
    assert "roi_head" not in with_fast_heads(config).model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_cfg.rpn.assigner.ignore_iof_thr", 0.5),
        ("train_cfg.rpn.assigner.type", "GridAssigner"),
        ("train_cfg.rpn.sampler.neg_pos_ub", 3),
        ("train_cfg.rpn.allowed_border", 0),
        ("train_cfg.rpn_proposal.nms.type", "soft_nms"),
        ("rpn_head.reg_decoded_bbox", True),
        ("rpn_head.bbox_coder.type", "TBLRBBoxCoder"),
    ],
)
def test_other_rules_for_proposals_keep_mmdets_head(key: str, value: object) -> None:
    config = stock_config()
    config.merge_from_dict({f"model.{key}": value})
    assert heads(config) == ("RPNHead", "BatchedRoIHead")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_cfg.rcnn.sampler.type", "OHEMSampler"),
        ("train_cfg.rcnn.assigner.gt_max_assign_all", False),
        ("roi_head.type", "CascadeRoIHead"),
        ("roi_head.bbox_head.reg_decoded_bbox", True),
        ("roi_head.bbox_head.loss_cls.use_sigmoid", True),
        ("roi_head.mask_head.type", "HTCMaskHead"),
        ("roi_head.bbox_roi_extractor.type", "GenericRoIExtractor"),
    ],
)
def test_other_rules_for_boxes_keep_mmdets_head(key: str, value: object) -> None:
    config = stock_config()
    config.merge_from_dict({f"model.{key}": value})
    rpn, roi = heads(config)
    assert rpn == "BatchedRPNHead"
    assert roi != "BatchedRoIHead"
