"""A detector of the built-in kind that is small enough to train in seconds, and its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mmdet")

from sparsevit.assets import asset

TINY = """
_base_ = {base!r}
model = dict(
    backbone=dict(embed_dims=8, num_heads=(1, 1, 1, 1)),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=40, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=40, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=10)),
)
size = (128, 128)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=size,
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type="Pad", size_divisor=32),
            dict(type="DefaultFormatBundle"),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
digits = dict(images=4, size=size, folder={folder!r}, pipeline=test_pipeline)
data = dict(
    samples_per_gpu=2,
    train=dict(images=4, size=size, crowd=(1, 3, 0.4, 1.0)),
    val=digits,
    test=digits,
)
runner = dict(max_epochs=2)
lr_config = dict(warmup_iters=2)
log_config = dict(interval=1)
evaluate_sparsities = dict(_delete_=True, images=2, sparsities={{"dense": None, "60%": 0.6}})
"""


def write_config(
    folder: Path, data: Path, *, name: str = "tiny.py", base: str = "mask_rcnn.py", more: str = ""
) -> Path:
    path = folder / name
    base = str(asset("configs", f"digits/{base}"))
    path.write_text(TINY.format(base=base, folder=str(data)) + more)
    return path


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the built-in data set is written, once for all tests."""
    return tmp_path_factory.mktemp("digits")


@pytest.fixture
def tiny(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the small detector's config; `more` is appended to it. The current folder is the test's own."""
    from mmcv.runner import epoch_based_runner

    import sparsevit.openmmlab  # noqa: F401

    monkeypatch.chdir(tmp_path)
    # mmcv's runner sleeps two seconds before every epoch, for the sake of worker processes.
    monkeypatch.setattr(epoch_based_runner, "time", SimpleNamespace(sleep=lambda seconds: None))

    def write(**arguments: Any) -> Path:
        return write_config(tmp_path, data_folder, **arguments)

    return write


OWN = """
_base_ = "tiny.py"
own = dict(type="CocoDataset", ann_file="own/own.json", img_prefix="own/images", classes=("cat", "dog"))
model = dict(
    rpn_head=dict(type="RPNHead"),
    roi_head=dict(type="StandardRoIHead", bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)),
)
data = dict(
    workers_per_gpu=0,
    train=dict(
        _delete_=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="Resize", img_scale=[(96, 96), (128, 128)], multiscale_mode="value", keep_ratio=True),
            dict(type="RandomFlip", flip_ratio=0.5),
            dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type="Pad", size_divisor=32),
            dict(type="DefaultFormatBundle"),
            dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels", "gt_masks"]),
        ],
        **own,
    ),
    val=dict(_delete_=True, pipeline={{_base_.test_pipeline}}, **own),
    test=dict(_delete_=True, pipeline={{_base_.test_pipeline}}, **own),
)
evaluate_sparsities = None
"""


class OwnData:
    """A COCO data set of eight images of two classes below `own/`; write it again after spoiling `content`."""

    def __init__(self, config: Path) -> None:
        import cv2
        import numpy as np

        self.config = config
        self.file = Path("own/own.json")
        self.images = Path("own/images")
        self.images.mkdir(parents=True)
        random = np.random.default_rng(0)
        for number in range(8):
            cv2.imwrite(str(self.images / f"{number}.png"), random.integers(0, 255, (128, 128, 3), np.uint8))
        self.content: dict[str, Any] = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 128, "width": 128} for i in range(8)],
            "annotations": [self._object(i) for i in range(16)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.content))

    @staticmethod
    def _object(number: int) -> dict[str, Any]:
        x, y, size = 4.0 + 4 * number, 20.0, 40.0
        return {
            "id": number + 1,
            "image_id": number % 8,
            "category_id": 1 + number % 2,
            "bbox": [x, y, size, size],
            "area": size * size,
            "iscrowd": 0,
            "segmentation": [[x, y, x + size, y, x + size, y + size, x, y + size]],
        }


@pytest.fixture
def own(tiny: Callable[..., Path]) -> OwnData:
    """A config of the small detector, with mmdet's own heads, for a stock CocoDataset in the current folder."""
    config = tiny().with_name("own.py")
    config.write_text(OWN)
    return OwnData(config)
