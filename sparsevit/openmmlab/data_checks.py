"""What is wrong with data, found before anything is trained on it: classes, masks, empty files, missing images.

mmdet says nothing to most of it: it trains on shifted labels, or stops hours later at the first image it cannot open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CustomDataset
from mmdet.models.dense_heads import GARPNHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import nn

from sparsevit.errors import UserError

_SHOWN = 10  # of a list of names


def check_training_data(dataset: Any, model: nn.Module, *, key: str = "data.train") -> None:
    """See that a detector can be trained on a data set, reading annotations and names of files, no image.

    Args:
        key: what the config calls the data set.

    Raises:
        UserError: if class names are not the annotation file's, no image is left to train on, an image file is not
            there, or the model wants other classes, or masks, where there are none.
    """
    for part in _parts(dataset):
        _check_classes(part, key)
        if len(part) == 0:
            raise UserError(_why_empty(part, key))
        _check_images(part, key, part.data_infos)
        if _has_mask_head(model):
            _check_collected(part, key)
            _check_masks(part, key)
    _check_heads(dataset, model, key)


def check_test_data(dataset: Any, model: nn.Module, *, images: int | None = None, key: str = "data.test") -> None:
    """See that a detector can be judged on a data set.

    Args:
        images: only the first so many are judged on.
        key: what the config calls the data set.

    Raises:
        UserError: as `check_training_data`.
    """
    for part in _parts(dataset):
        _check_classes(part, key)
        if not part.coco.anns:
            raise UserError(f"{key}: {part.ann_file} holds no annotation, so there is nothing to judge detections by")
        _check_images(part, key, part.data_infos[:images])
        if _has_mask_head(model):
            _check_masks(part, key)
    _check_heads(dataset, model, key)


def _parts(dataset: Any) -> Iterator[Any]:
    """The COCO data sets inside mmdet's wrappers, which repeat, mix and join them."""
    inside = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for one in inside:
        if one is not None:
            yield from _parts(one)
    if isinstance(dataset, CustomDataset) and hasattr(dataset, "coco"):
        yield dataset


def _check_classes(dataset: Any, key: str) -> None:
    wanted: Sequence[str] = dataset.CLASSES
    there = [category["name"] for category in dataset.coco.dataset.get("categories", [])]
    doubled = sorted({name for name in there if there.count(name) > 1} & set(wanted))
    if doubled:
        raise UserError(f"{key}: {dataset.ann_file} has several categories of one name: {_listed(doubled)}")
    missing = [name for name in wanted if name not in there]
    if missing:
        tuple_of = ", ".join(map(repr, there[:_SHOWN])) + (", …" if len(there) > _SHOWN else "," * (len(there) == 1))
        raise UserError(
            f"{key}: {len(missing)} of the {len(wanted)} class names are not in {dataset.ann_file}: "
            f"{_listed(missing)}; "
            + (f"it has {_listed(there)}: set {key}.classes=({tuple_of})" if there else "it names no category at all")
        )


def _why_empty(dataset: Any, key: str) -> str:
    coco, file = dataset.coco, dataset.ann_file
    if not coco.imgs:
        return f"{key}: {file} holds no image"
    if not coco.anns:
        return f"{key}: {file} holds no annotation, so there is nothing to train on"
    wanted = set(dataset.cat_ids)
    annotated = {one["image_id"] for one in coco.anns.values() if one["category_id"] in wanted} & coco.imgs.keys()
    if not annotated:
        return f"{key}: none of the {len(coco.imgs)} images of {file} has an annotation of {_listed(dataset.CLASSES)}"
    return f"{key}: all of the {len(annotated)} annotated images of {file} are smaller than 32 pixels"


def _check_images(dataset: Any, key: str, infos: Sequence[Mapping[str, Any]]) -> None:
    """Every image file is there: each folder is listed once, which takes a fraction of a second for COCO."""
    if not _on_disk(dataset):
        return
    prefix = dataset.img_prefix or ""
    folders: dict[str, set[str]] = {}
    missing = []
    for info in infos:
        path = os.path.join(prefix, info["filename"])
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _files(folder)
        if name not in folders[folder]:
            missing.append(path)
    if not missing:
        return
    cure = f"set {key}.img_prefix to the folder that the names in {dataset.ann_file} start from"
    if prefix and not Path(prefix).is_dir():
        raise UserError(f"{key}: the image folder {prefix} is not there: {cure}")
    if len(missing) == len(infos):
        raise UserError(f"{key}: none of the {len(infos)} images is there, the first is {missing[0]}: {cure}")
    raise UserError(f"{key}: {len(missing)} of the {len(infos)} images are not there, the first is {missing[0]}")


def _on_disk(dataset: Any) -> bool:
    """Whether images are plain files, and not read from some store by mmcv's file clients."""
    settings = [getattr(one, "file_client_args", None) for one in _transforms(dataset)]
    return "://" not in (dataset.img_prefix or "") and all(
        (one or {}).get("backend", "disk") == "disk" for one in settings
    )


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def _check_collected(dataset: Any, key: str) -> None:
    kept = [one.keys for one in _transforms(dataset) if type(one).__name__ == "Collect"]
    if kept and "gt_masks" not in kept[-1]:
        raise UserError(
            f"{key}: the model has a mask head, but the pipeline yields no masks: write "
            "LoadAnnotations(with_bbox=True, with_mask=True) and 'gt_masks' among Collect's keys"
        )


def _check_masks(dataset: Any, key: str) -> None:
    """Every object that counts has a segmentation. Crowds are left out, as mmdet leaves them out."""
    wanted = set(dataset.cat_ids)
    objects = [
        one for one in dataset.coco.anns.values() if one["category_id"] in wanted and not one.get("iscrowd", False)
    ]
    bare = [one["id"] for one in objects if not one.get("segmentation")]
    if not bare:
        return
    cure = "give masks, or take a detector without a mask head"
    if len(bare) == len(objects):
        raise UserError(f"{key}: {dataset.ann_file} has no masks (segmentation), but the model has a mask head: {cure}")
    raise UserError(
        f"{key}: {len(bare)} of the {len(objects)} annotations in {dataset.ann_file} have no mask (segmentation), "
        f"the first has id {bare[0]}, but the model has a mask head: {cure}"
    )


def _check_heads(dataset: Any, model: nn.Module, key: str) -> None:
    names = getattr(dataset, "CLASSES", None)
    if not names:
        return
    wrong = [
        f"model.{name}.num_classes={module.num_classes}"
        for name, module in model.named_modules()
        if isinstance(module, BBoxHead | FCNMaskHead | BaseDenseHead)
        and not isinstance(module, RPNHead | GARPNHead)
        and not (isinstance(module, FCNMaskHead) and module.class_agnostic)
        and getattr(module, "num_classes", len(names)) != len(names)
    ]
    if wrong:
        raise UserError(f"{key} has {len(names)} classes ({_listed(names)}), but the config has {', '.join(wrong)}")


def _has_mask_head(model: nn.Module) -> bool:
    return bool(getattr(model, "with_mask", False))


def _transforms(dataset: Any) -> list[Any]:
    return getattr(getattr(dataset, "pipeline", None), "transforms", [])


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
