"""COCO's layout at a size for tests: a few small images below `data/coco/`, with all 80 categories named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_coco(root: Path, images: int = 3, size: tuple[int, int] = (48, 80)) -> Path:
    """Write both splits of COCO 2017 with made-up images, two objects each, and return the folder."""
    from mmdet.datasets import CocoDataset

    categories = [{"id": i, "name": name} for i, name in enumerate(CocoDataset.CLASSES, 1)]
    random = np.random.default_rng(0)
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        height, width = size
        entries, found = [], []
        for number in range(1, images + 1):
            name = f"{number:012}.jpg"
            pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
            for place in range(2):
                x, y, w, h = 4 + 40 * place, 8, 24, 30
                pixels[y : y + h, x : x + w, place] = 230
                found.append(
                    {
                        "id": len(found) + 1,
                        "image_id": number,
                        "category_id": 1 + place,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            Image.fromarray(pixels).save(root / split / name)
            entries.append({"id": number, "file_name": name, "height": height, "width": width})
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": entries, "annotations": found, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def small(size: int = 96, **more: Any) -> dict[str, Any]:
    """Options that shrink a detector of `configs/coco` and its images, for `load_config`."""
    square = (size, size)
    options: dict[str, Any] = {
        "model.backbone.embed_dims": 8,
        "model.backbone.num_heads": [1, 1, 1, 1],
        "model.neck.out_channels": 16,
        "data.train.pipeline.2.img_scale": square,
        "data.train.pipeline.5.size": square,
        "data.samples_per_gpu": 2,
        "data.workers_per_gpu": 0,
        "log_config.interval": 1,
        "runner.max_epochs": 1,
    }
    for split in ("val", "test"):
        options |= {
            f"data.{split}.pipeline.1.img_scale": square,
            f"data.{split}.pipeline.1.transforms.2.size": square,
        }
    return options | more


def small_heads(kind: str) -> dict[str, Any]:
    """More of them, for the heads of a `kind` of detector."""
    if kind == "RetinaNet":
        return {
            "model.neck.in_channels": [16, 32, 64],
            "model.bbox_head.in_channels": 16,
            "model.bbox_head.feat_channels": 16,
            "model.bbox_head.stacked_convs": 1,
            "model.test_cfg.score_thr": 0.0,
            "model.test_cfg.max_per_img": 10,
        }
    options: dict[str, Any] = {
        "model.neck.in_channels": [8, 16, 32, 64],
        "model.rpn_head.in_channels": 16,
        "model.rpn_head.feat_channels": 16,
        "model.roi_head.bbox_roi_extractor.out_channels": 16,
        "model.train_cfg.rpn_proposal.max_per_img": 20,
        "model.test_cfg.rpn.max_per_img": 20,
        "model.test_cfg.rcnn.score_thr": 0.0,
        "model.test_cfg.rcnn.max_per_img": 10,
    }
    for each in ("0.", "1.", "2.") if kind == "CascadeRCNN" else ("",):
        head = "model.roi_head.bbox_head." + each
        options |= {f"{head}in_channels": 16, f"{head}fc_out_channels": 16}
        options[f"model.train_cfg.rcnn.{each}sampler.num"] = 16
    if kind != "FasterRCNN":
        options |= {
            "model.roi_head.mask_roi_extractor.out_channels": 16,
            "model.roi_head.mask_head.in_channels": 16,
            "model.roi_head.mask_head.conv_out_channels": 16,
            "model.roi_head.mask_head.num_convs": 1,
        }
    return options
