"""The fast loader yields what mmdet's own pipeline and collate do, image for image, in the same order."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmcv.parallel import collate
from mmdet.datasets import build_dataset
from mmdet.datasets.pipelines import Compose
from mmdet.datasets.samplers import GroupSampler

from sparsevit.openmmlab.coco_loader import DeviceLoader, device_loader
from sparsevit.openmmlab.parallel import to_device

# pycocotools as it is, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
LOAD = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
KEYS = ["img", "gt_bboxes", "gt_bboxes_ignore", "gt_labels", "gt_masks"]
FORMAT = [dict(type="DefaultFormatBundle"), dict(type="Collect", keys=KEYS)]
FLIP = dict(type="RandomFlip", flip_ratio=0.5)
SQUARE = dict(type="Resize", img_scale=(96, 80), keep_ratio=False)
RATIO = dict(type="Resize", img_scale=(131, 77), keep_ratio=True)


def end(pad: dict[str, Any] | None = None, **norm: Any) -> list[dict[str, Any]]:
    padding = [dict(type="Pad", **pad)] if pad is not None else []
    return [dict(type="Normalize", **{**NORM, **norm}), *padding, *FORMAT]


@pytest.fixture(scope="session")
def coco_like() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "coco_like", Path(__file__).parents[2] / "benchmarks" / "coco_like.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def coco(coco_like: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of odd sizes; one with a crowd, one with an ignored object, one with nothing, one with another class."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    records, annotations = [], []
    for number in range(10):
        record, found = coco_like._draw(folder, 3, number)
        records.append(record)
        annotations += [{**each, "id": len(annotations) + i + 1} for i, each in enumerate(found)]
    annotations = [each for each in annotations if each["image_id"] != 4]
    for each in annotations:
        if each["image_id"] == 6:
            each["category_id"] = 9
    next(each for each in annotations if each["image_id"] == 8)["ignore"] = True
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(coco_like.CLASSES)]
    categories.append({"id": 9, "name": "other"})
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def dataset_of(coco: Path, pipeline: list[dict[str, Any]], **more: Any) -> Any:
    settings = dict(
        type="CocoDataset",
        ann_file=str(coco / "instances.json"),
        img_prefix=str(coco),
        classes=("ellipse", "polygon", "star", "ring"),
        pipeline=pipeline,
    )
    return build_dataset({**settings, **more})


def loader_of(dataset: Any, *, batch: int = 2, workers: int = 0, seed: int = 0, **more: Any) -> DeviceLoader:
    loader = device_loader(dataset, batch, workers, 0, 1, CPU, seed, **more)
    assert loader is not None
    return loader


def batches(loader: DeviceLoader, epoch: int = 0) -> Iterator[dict[str, Any]]:
    np.random.seed(epoch)
    loader.set_epoch(epoch)
    return iter(loader)


def stock_batches(dataset: Any, flips: list[str | None], batch: int = 2) -> Iterator[dict[str, Any]]:
    """mmdet's own batches of an epoch, with each image flipped as told."""
    np.random.seed(0)
    samples = []
    for index, flip in zip(GroupSampler(dataset, batch), flips, strict=True):
        pipeline = Compose(list(dataset.pipeline.transforms))
        for i, transform in enumerate(pipeline.transforms):
            if type(transform).__name__ == "RandomFlip":
                chosen = dict(flip_ratio=1.0, direction=flip) if flip else dict(flip_ratio=0.0)
                pipeline.transforms[i] = type(transform)(**chosen)
        results = dict(img_info=dataset.data_infos[index], ann_info=dataset.get_ann_info(index))
        dataset.pre_pipeline(results)
        samples.append(pipeline(results))
    for start in range(0, len(samples), batch):
        yield to_device(collate(samples[start : start + batch], batch), CPU)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours["img"].dtype == torch.float32
    torch.testing.assert_close(ours["img"], theirs["img"], rtol=0, atol=1e-4)
    for key in ("gt_bboxes", "gt_bboxes_ignore", "gt_labels"):
        for mine, other in zip(ours[key], theirs[key], strict=True):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other)
    for mine, other in zip(ours["gt_masks"], theirs["gt_masks"], strict=True):
        whole = np.zeros((len(other), *ours["img"].shape[2:]), bool)
        whole[:, : other.height, : other.width] = other.masks
        np.testing.assert_array_equal(mine.to_ndarray(), whole)
    for mine, other in zip(ours["img_metas"], theirs["img_metas"], strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            if key == "img_norm_cfg":
                assert str(mine[key]) == str(other[key])
            else:
                np.testing.assert_array_equal(mine[key], other[key])


PIPELINES = {
    "square": [*LOAD, SQUARE, FLIP, *end(dict(size_divisor=32))],
    "ratio": [*LOAD, RATIO, FLIP, *end(dict(size_divisor=32))],
    "not padded": [*LOAD, RATIO, FLIP, *end()],
    "padded to a size": [*LOAD, RATIO, FLIP, *end(dict(size=(150, 140)))],
    "padded before": [*LOAD, RATIO, dict(type="Pad", size=(150, 140)), FLIP, *end(to_rgb=False)],
    "every direction": [
        *LOAD,
        RATIO,
        dict(type="RandomFlip", flip_ratio=0.9, direction=["horizontal", "vertical", "diagonal"]),
        *end(dict(size_divisor=32)),
    ],
    "ratios": [
        *LOAD,
        RATIO,
        dict(type="RandomFlip", flip_ratio=[0.5, 0.3], direction=["vertical", "diagonal"]),
        *end(dict(size_divisor=16)),
    ],
    "never flipped": [*LOAD, RATIO, dict(type="RandomFlip", flip_ratio=0.0), *end()],
    "to float": [dict(type="LoadImageFromFile", to_float32=True), LOAD[1], RATIO, FLIP, *end(dict(size_divisor=32))],
    "as it is": [*LOAD, FLIP, *end(dict(size_divisor=32))],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_batches_equal_mmdets(coco: Path, name: str) -> None:
    dataset = dataset_of(coco, PIPELINES[name])
    assert len(dataset) == 8, "without objects of its classes an image is left out"
    loader = loader_of(dataset)
    first, second = list(batches(loader)), list(batches(loader))
    metas = [meta for batch in first for meta in batch["img_metas"]]
    flips = [meta["flip_direction"] for meta in metas]
    assert (set(flips) == {None}) == (name == "never flipped")
    stock = list(stock_batches(dataset, flips))
    assert len(loader) == len(first) == len(stock)
    for ours, cached, theirs in zip(first, second, stock, strict=True):
        assert_same(ours, theirs)
        assert_same(cached, theirs)
    assert any(len(ignored) for batch in first for ignored in batch["gt_bboxes_ignore"])
