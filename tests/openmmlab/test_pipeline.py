"""Which transforms are computed once, which are drawn in workers, which are left to the device, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.datasets import PIPELINES
from mmdet.datasets.pipelines import Compose

from sparsevit.openmmlab.pipeline import CannotSplitError, split

IMAGE = dict(type="LoadImageFromFile")
LOAD = [IMAGE, dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
RESIZE = dict(type="Resize", img_scale=(96, 80), keep_ratio=True)
SCALES = dict(type="Resize", img_scale=[(96, 80), (64, 64)], multiscale_mode="value", keep_ratio=True)
FLIP = dict(type="RandomFlip", flip_ratio=0.5)
NORMALIZE = dict(type="Normalize", mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0])
PAD = dict(type="Pad", size_divisor=32)
BUNDLE = dict(type="DefaultFormatBundle")
COLLECT = dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels", "gt_masks"])
END = [FLIP, NORMALIZE, PAD, BUNDLE, COLLECT]


@PIPELINES.register_module(name="OwnNormalize")
class OwnNormalize:
    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return results


def names(transforms: Any) -> list[str]:
    return [type(each).__name__ for each in transforms]


def built(pipeline: list[dict[str, Any]]) -> Any:
    return Compose(pipeline).transforms


@pytest.mark.parametrize(
    ("pipeline", "once", "middle", "flips"),
    [
        ([*LOAD, RESIZE, *END], ["LoadImageFromFile", "LoadAnnotations", "Resize"], [], True),
        ([*LOAD, RESIZE, PAD, *END], ["LoadImageFromFile", "LoadAnnotations", "Resize", "Pad"], [], True),
        ([*LOAD, SCALES, *END], ["LoadImageFromFile", "LoadAnnotations"], ["Resize"], True),
        (
            [*LOAD, dict(type="Resize", img_scale=(96, 80), ratio_range=(0.5, 2.0)), *END],
            ["LoadImageFromFile", "LoadAnnotations"],
            ["Resize"],
            True,
        ),
        (
            [*LOAD, FLIP, SCALES, dict(type="OwnNormalize"), *END[1:]],
            ["LoadImageFromFile", "LoadAnnotations"],
            ["RandomFlip", "Resize", "OwnNormalize"],
            False,
        ),
        (
            [*LOAD, RESIZE, dict(type="PhotoMetricDistortion"), *END],
            ["LoadImageFromFile", "LoadAnnotations", "Resize"],
            ["PhotoMetricDistortion"],
            True,
        ),
    ],
)
def test_the_three_parts(pipeline: list[dict[str, Any]], once: list[str], middle: list[str], flips: bool) -> None:
    parts = split(built(pipeline))
    assert names(parts.once) == once
    assert names(parts.middle) == middle
    assert (parts.on_device.flip is not None) == flips


@pytest.mark.parametrize(
    ("pipeline", "named"),
    [
        ([*LOAD, RESIZE, FLIP, dict(type="OwnNormalize"), PAD, BUNDLE, COLLECT], "OwnNormalize where Normalize"),
        ([*LOAD, RESIZE, *END, dict(type="OwnNormalize")], "OwnNormalize where Collect"),
        ([*LOAD, RESIZE, FLIP, PAD, BUNDLE, COLLECT], "RandomFlip where Normalize"),
        ([*LOAD, RESIZE, FLIP, NORMALIZE, PAD, dict(type="ImageToTensor", keys=["img"]), COLLECT], "ImageToTensor"),
        ([dict(type="OwnNormalize"), *LOAD, RESIZE, *END], "OwnNormalize where LoadImageFromFile"),
        ([dict(type="LoadImageFromFile", color_type="grayscale"), *END], "LoadImageFromFile of other than colour"),
        ([dict(type="LoadImageFromFile", file_client_args=dict(backend="petrel")), *END], "LoadImageFromFile of other"),
        ([IMAGE, dict(type="LoadAnnotations", with_mask=True, poly2mask=False), *END], "LoadAnnotations of polygons"),
        ([IMAGE, dict(type="LoadAnnotations", with_seg=True), *END], "LoadAnnotations of polygons or segmentation"),
        ([*LOAD, FLIP, NORMALIZE, dict(type="Pad", pad_to_square=True), BUNDLE, COLLECT], "Pad to a square"),
        (
            [*LOAD, FLIP, NORMALIZE, dict(type="Pad", size_divisor=32, pad_val=dict(img=114.0)), BUNDLE, COLLECT],
            "Pad to a square or with another value than 0",
        ),
        (
            [*LOAD, FLIP, NORMALIZE, PAD, dict(type="DefaultFormatBundle", pad_val=dict(img=1)), COLLECT],
            "DefaultFormatBundle that pads",
        ),
        ([*LOAD, *END[:-1], dict(type="Collect", keys=["img", "gt_semantic_seg"])], "Collect of gt_semantic_seg"),
        ([COLLECT], "nothing where DefaultFormatBundle"),
    ],
)
def test_what_cannot_be_split_is_named(pipeline: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(CannotSplitError, match=named):
        split(built(pipeline))


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        (dict(flip_ratio=0.25), {"horizontal": 0.25, None: 0.75}),
        (dict(flip_ratio=1.0, direction="vertical"), {"vertical": 1.0}),
        (dict(flip_ratio=0.6, direction=["horizontal", "diagonal"]), {"horizontal": 0.3, "diagonal": 0.3, None: 0.4}),
        (dict(flip_ratio=[0.1, 0.5], direction=["horizontal", "vertical"]), {"horizontal": 0.1, "vertical": 0.5}),
    ],
)
def test_flips_are_drawn_as_often_as_the_config_says(settings: dict[str, Any], shares: dict[str | None, float]) -> None:
    on_device = split(built([IMAGE, dict(type="RandomFlip", **settings), *END[1:]])).on_device
    random = np.random.default_rng(0)
    drawn = [on_device.draw_flip(random) for _ in range(4000)]
    for direction, share in shares.items():
        assert abs(drawn.count(direction) / len(drawn) - share) < 0.03


def test_settings_tell_deterministic_parts_apart() -> None:
    variants = [
        [*LOAD, RESIZE, *END],
        [*LOAD, {**RESIZE, "keep_ratio": False}, *END],
        [*LOAD, {**RESIZE, "interpolation": "area"}, *END],
        [*LOAD, {**RESIZE, "bbox_clip_border": False}, *END],
        [LOAD[0], RESIZE, *END],
        [dict(type="LoadImageFromFile", channel_order="rgb"), LOAD[1], RESIZE, *END],
    ]
    assert len({repr(split(built(variant)).settings) for variant in variants}) == len(variants)
    same = split(built([*LOAD, RESIZE, NORMALIZE, BUNDLE, COLLECT]))
    assert same.settings == split(built(variants[0])).settings, "what comes after is no part of it"
