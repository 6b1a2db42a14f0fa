"""The fast loader yields what mmdet's own pipeline and collate do, image for image, in the same order."""

from __future__ import annotations

import importlib.util
import json
import shutil
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
from mmdet.core import BitmapMasks
from mmdet.datasets import CocoPanopticDataset, ConcatDataset, build_dataset
from mmdet.datasets.pipelines import Compose
from mmdet.datasets.samplers import DistributedGroupSampler, GroupSampler

from sparsevit.errors import UserError
from sparsevit.openmmlab.coco_loader import DeviceLoader, device_loader
from sparsevit.openmmlab.device_batch import Normalization, finish
from sparsevit.openmmlab.device_batch import collate as device_collate
from sparsevit.openmmlab.masks import DeviceMasks
from sparsevit.openmmlab.parallel import to_device
from sparsevit.openmmlab.prepared_images import PreparedImages
from sparsevit.openmmlab.seeding import drawing

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


def stock_image(dataset: Any, seed: int, epoch: int, index: int, flip: str | None) -> Any:
    """What mmdet's own pipeline makes of an image with the loader's draws, but for the last flip, which is told."""
    with drawing(np.random.SeedSequence((seed, epoch, index))):
        while True:
            results = dict(img_info=dataset.data_infos[index], ann_info=dataset.get_ann_info(index))
            dataset.pre_pipeline(results)
            for transform in dataset.pipeline.transforms[:-4]:
                results = transform(results) if results is not None else None
            if results is not None:
                break
            index = dataset._rand_another(index)
    *_, last, normalize, bundle, collect = dataset.pipeline.transforms
    if type(last).__name__ == "RandomFlip":
        last = type(last)(flip_ratio=1.0, direction=flip) if flip else type(last)(flip_ratio=0.0)
    return Compose([last, normalize, bundle, collect])(results)


MIDDLES = {
    "scales": [dict(type="Resize", img_scale=[(131, 77), (96, 64)], multiscale_mode="range", keep_ratio=True)],
    "crop": [RATIO, dict(type="RandomCrop", crop_size=(40, 40), recompute_bbox=True)],
    "colours": [RATIO, dict(type="PhotoMetricDistortion")],
    "policies": [
        dict(
            type="AutoAugment",
            policies=[
                [dict(type="Resize", img_scale=[(131, 77), (96, 64)], multiscale_mode="value", keep_ratio=True)],
                [
                    dict(type="Resize", img_scale=[(150, 90), (140, 80)], multiscale_mode="value", keep_ratio=True),
                    dict(type="RandomCrop", crop_type="absolute_range", crop_size=(40, 60), allow_negative_crop=True),
                    dict(type="Resize", img_scale=[(90, 70)], override=True, keep_ratio=True),
                ],
            ],
        )
    ],
    "turned": [RATIO, dict(type="Rotate", level=5, prob=1.0)],
}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_workers_draw_equals_mmdets(coco: Path, name: str) -> None:
    dataset = dataset_of(coco, [*LOAD, *MIDDLES[name], FLIP, *end()])
    images = PreparedImages(dataset, 7)
    samples = [images[2, index] for index in range(len(dataset))]
    assert not [sample for sample in samples if isinstance(sample, UserError)]
    normalization = Normalization.of(images.split.on_device.normalize, CPU)
    for index, sample in enumerate(samples):
        ours = finish(device_collate([sample]), normalization)
        theirs = to_device(collate([stock_image(dataset, 7, 2, index, sample.direction)], 1), CPU)
        assert_same(ours, theirs)
    assert {sample.direction for sample in samples} == {None, "horizontal"}


def test_a_flip_before_other_transforms_is_mmdets(coco: Path) -> None:
    dataset = dataset_of(coco, [*LOAD, FLIP, MIDDLES["scales"][0], *end()])
    images = PreparedImages(dataset, 7)
    assert images.split.on_device.flip is None
    flips = set()
    for index in range(len(dataset)):
        sample = images[0, index]
        with drawing(np.random.SeedSequence((7, 0, index))):
            theirs = to_device(collate([dataset.prepare_train_img(index)], 1), CPU)
        ours = finish(device_collate([sample]), Normalization.of(images.split.on_device.normalize, CPU))
        assert_same(ours, theirs)
        flips.add(sample.meta["flip"])
    assert flips == {False, True}


def test_channels_last_is_only_a_layout(coco: Path) -> None:
    images = PreparedImages(dataset_of(coco, PIPELINES["ratio"]), 0)
    batch = device_collate([images[0, 0], images[0, 1]])
    normalization = Normalization.of(images.split.on_device.normalize, CPU)
    first, second = (finish(batch, normalization, channels_last=last)["img"] for last in (False, True))
    assert torch.equal(first, second)
    assert first.is_contiguous()
    assert second.is_contiguous(memory_format=torch.channels_last)


def test_workers_and_resuming_change_nothing(coco: Path) -> None:
    dataset = dataset_of(coco, [*LOAD, MIDDLES["scales"][0], FLIP, *end(dict(size_divisor=32))])
    alone = loader_of(dataset, seed=3)
    epochs = [list(batches(alone, epoch)) for epoch in range(3)]
    sums = [[float(batch["img"].sum()) for batch in epoch] for epoch in epochs]
    assert len({sum(epoch) for epoch in sums}) == 3, "every epoch draws anew"
    assert sums[0] != [float(batch["img"].sum()) for batch in batches(loader_of(dataset, seed=4))]
    helped = loader_of(dataset, seed=3, workers=2, cache=False)
    for epoch in (1, 2):  # as a run that goes on after the first epoch
        for ours, expected in zip(batches(helped, epoch), epochs[epoch], strict=True):
            assert_same(ours, {**expected, "gt_masks": [_as_mmdets(each) for each in expected["gt_masks"]]})


def _as_mmdets(masks: Any) -> BitmapMasks:
    return BitmapMasks(masks.to_ndarray().astype(np.uint8), masks.height, masks.width)


def test_preparing_leaves_the_process_own_draws_alone(coco: Path) -> None:
    loader = loader_of(dataset_of(coco, [*LOAD, MIDDLES["scales"][0], FLIP, *end()]))
    iterator = batches(loader)
    next(iterator)
    before = np.random.get_state()[1], torch.get_rng_state()
    next(iterator)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_the_shares_that_mmdet_gives_them(coco: Path, ranks: int) -> None:
    dataset = dataset_of(coco, PIPELINES["ratio"])
    for rank in range(ranks):
        loader = device_loader(dataset, 2, 0, rank, ranks, CPU, 5)
        assert loader is not None
        sampler = DistributedGroupSampler(dataset, 2, ranks, rank, seed=5)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            names = [meta["ori_filename"] for batch in batches(loader, epoch) for meta in batch["img_metas"]]
            assert names == [dataset.data_infos[index]["filename"] for index in sampler]


def test_a_repeated_data_set_is_drawn_anew_each_time(coco: Path) -> None:
    pipeline = PIPELINES["ratio"]
    inner = dict(
        type="CocoDataset",
        ann_file=str(coco / "instances.json"),
        img_prefix=str(coco),
        classes=("ellipse", "polygon", "star", "ring"),
        pipeline=pipeline,
    )
    dataset = build_dataset(dict(type="RepeatDataset", times=4, dataset=inner))
    flips: dict[str, set[bool]] = {}
    loader = loader_of(dataset)
    for batch in batches(loader):
        for meta in batch["img_metas"]:
            flips.setdefault(meta["ori_filename"], set()).add(meta["flip"])
    assert len(loader) == 16
    assert len(flips) == 8
    assert {False, True} in flips.values()


def test_boxes_alone_are_loaded_without_masks(coco: Path) -> None:
    keys = ["img", "gt_bboxes", "gt_labels"]
    pipeline = [LOAD[0], dict(type="LoadAnnotations"), RATIO, FLIP, dict(type="Normalize", **NORM), FORMAT[0]]
    dataset = dataset_of(coco, [*pipeline, dict(type="Collect", keys=keys)])
    assert set(next(batches(loader_of(dataset)))) == {*keys, "img_metas"}


def test_images_without_objects_are_kept_if_the_config_says_so(coco: Path) -> None:
    dataset = dataset_of(coco, PIPELINES["ratio"], filter_empty_gt=False)
    assert len(dataset) == 10
    found = [batch for _ in range(2) for batch in batches(loader_of(dataset, batch=1))]
    assert sorted(len(batch["gt_bboxes"][0]) for batch in found)[:4] == [0] * 4
    for batch in found:
        assert batch["gt_bboxes"][0].shape == (len(batch["gt_masks"][0]), 4)
        assert batch["gt_masks"][0].masks.shape[1:] == batch["img"].shape[2:]


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda data: dict(type="ConcatDataset", datasets=[data, data]), "the data set ConcatDataset"),
        (lambda data: dict(type="ClassBalancedDataset", dataset=data, oversample_thr=0.1), "ClassBalancedDataset"),
        (lambda data: dict(type="MultiImageMixDataset", dataset=data, pipeline=[]), "MultiImageMixDataset"),
        (lambda data: {**data, "type": "CocoPanopticDataset"}, "CocoPanopticDataset, which prepares images in its own"),
        (lambda data: {**data, "pipeline": [*LOAD, RATIO, FLIP, *FORMAT]}, "RandomFlip where Normalize"),
    ],
)
def test_what_mmdet_has_to_load_is_said_in_a_line(
    coco: Path, wrap: Any, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dict(
        type="CocoDataset",
        ann_file=str(coco / "instances.json"),
        img_prefix=str(coco),
        classes=("ellipse", "polygon", "star", "ring"),
        pipeline=PIPELINES["ratio"],
    )
    settings = wrap(plain)
    if settings["type"] == "ConcatDataset":
        dataset: Any = ConcatDataset([build_dataset(plain), build_dataset(plain)])
    elif settings["type"] == "CocoPanopticDataset":
        dataset = build_dataset(plain)
        dataset.__class__ = CocoPanopticDataset
        monkeypatch.setattr(CocoPanopticDataset, "prepare_train_img", lambda self, index: None, raising=False)
    else:
        dataset = build_dataset(settings)
    capsys.readouterr()
    assert device_loader(dataset, 2, 0, 0, 1, CPU, 0) is None
    said = capsys.readouterr().out
    assert named in said
    assert said.count("\n") == 1


def test_proposals_are_left_to_mmdet(coco: Path) -> None:
    dataset = dataset_of(coco, PIPELINES["ratio"])
    dataset.proposals = [np.zeros((0, 5), np.float32)] * len(dataset)
    assert device_loader(dataset, 2, 0, 0, 1, CPU, 0) is None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("spoilt", "said"), [(None, "it is not there"), (b"no image", "AttributeError")])
def test_a_spoilt_image_is_one_line(coco: Path, tmp_path: Path, spoilt: bytes | None, said: str, workers: int) -> None:
    folder = tmp_path / "data"
    shutil.copytree(coco, folder)
    dataset = dataset_of(folder, PIPELINES["ratio"])
    name = dataset.data_infos[3]["filename"]
    (folder / name).unlink()
    if spoilt is not None:
        (folder / name).write_bytes(spoilt)
    with pytest.raises(UserError, match=f"cannot prepare the image {name} of .*instances.json: .*{said}") as error:
        list(batches(loader_of(dataset, workers=workers)))
    assert "\n" not in str(error.value)
    shutil.rmtree(folder / "images")
    with pytest.raises(UserError, match="it is not there"):
        loader_of(dataset)


@pytest.mark.parametrize(
    "settings", ["there", {"folder": 3}, {"max_gb": -1}, {"max_gb": "9"}, {"max_gb": True}, {"size": 3}, 7]
)
def test_settings_of_the_cache_that_mean_nothing_are_refused(coco: Path, settings: Any) -> None:
    with pytest.raises(UserError, match=r"data\.image_cache is .*: give False, or a dict with folder"):
        loader_of(dataset_of(coco, PIPELINES["ratio"]), cache=settings)


def test_a_cache_is_where_the_config_says_or_nowhere(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = dataset_of(coco, PIPELINES["ratio"])
    cache = {"folder": str(tmp_path / "cache"), "max_gb": 1}
    list(batches(loader_of(dataset, cache=cache)))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 8
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep images in .*file.*: .*; give data.image_cache another folder"):
        loader_of(dataset, cache={"folder": str(tmp_path / "file")})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    capsys.readouterr()
    assert len(list(batches(loader_of(dataset)))) == 4
    assert "each is decoded anew every time" in capsys.readouterr().out
    capsys.readouterr()
    loader_of(dataset, cache=False)
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_those_on_the_cpu(coco: Path) -> None:
    dataset = dataset_of(coco, PIPELINES["every direction"])
    loader = device_loader(dataset, 2, 2, 0, 1, torch.device("cuda:0"), 0)
    assert loader is not None
    for epoch in (0, 1):
        on_gpu, on_cpu = (list(batches(each, epoch)) for each in (loader, loader_of(dataset)))  # one order at a time
        for ours, expected in zip(on_gpu, on_cpu, strict=True):
            assert ours["img"].device.type == "cuda"
            ours = {**to_device(ours, CPU), "gt_masks": [DeviceMasks(each.masks.cpu()) for each in ours["gt_masks"]]}
            assert_same(ours, {**expected, "gt_masks": [_as_mmdets(each) for each in expected["gt_masks"]]})


def test_training_takes_it_unless_the_config_says_no(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmcv import Config

    from sparsevit.openmmlab.train import _loader

    dataset = dataset_of(coco, PIPELINES["ratio"])
    kinds = {}
    for wanted in (None, True, False):
        data = dict(samples_per_gpu=2, workers_per_gpu=0, image_cache=False)
        if wanted is not None:
            data["device_pipeline"] = wanted
        loader = _loader(dataset, Config(dict(data=data)), 0, 1, CPU, 0)
        assert len(loader) == 4
        kinds[wanted] = type(loader)
    assert kinds == {None: DeviceLoader, True: DeviceLoader, False: torch.utils.data.DataLoader}
