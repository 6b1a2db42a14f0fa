"""Opening the data sets of a config, and saying plainly what is wrong with one."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any

from mmdet.datasets import DATASETS, build_dataset, replace_ImageToTensor

from sparsevit.errors import UserError, first_line

_COCO_KEYS = ("images", "annotations", "categories", "id", "name", "file_name", "width", "height", "image_id")


def training_dataset(config: Mapping[str, Any]) -> Any:
    """The data set of `data.train`.

    Raises:
        UserError: if its files are not there or it cannot be read.
    """
    return _open(config, {})


def test_dataset(config: Mapping[str, Any], *, batched: bool) -> Any:
    """The data set of `data.val` or `data.test`: all of its images, in order.

    A data set class may have a class method `prepare(**settings)`, which is called before and may show its progress.

    Args:
        batched: whether several images are to be run at once.

    Raises:
        UserError: if its files are not there, it cannot be read, it is not in COCO format, or it holds no image.
    """
    settings = dict(config)
    settings.pop("samples_per_gpu", None)  # mmdet's test tool reads it from here
    if batched and "pipeline" in settings:
        settings["pipeline"] = replace_ImageToTensor(settings["pipeline"])
    dataset = _open(settings, {"test_mode": True})
    if not hasattr(dataset, "coco"):
        raise UserError(f"data set {settings.get('type')} is not in COCO format, and COCO metrics need that")
    if len(dataset) == 0:
        raise UserError(f"the data set {dataset.ann_file} holds no image")
    return dataset


def _open(config: Mapping[str, Any], defaults: dict[str, Any]) -> Any:
    name = config.get("type") if isinstance(config, Mapping) else None  # mmdet joins the data sets of a list
    prepare = getattr(DATASETS.get(name), "prepare", None) if isinstance(name, str) else None
    try:
        if prepare is not None:
            prepare(**{key: value for key, value in config.items() if key != "type"})
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints while it reads
            return build_dataset(config, defaults)
    except UserError:
        raise
    except Exception as error:
        # mmcv raises its own copy of what a class raised; the first one knows the file.
        while isinstance(error.__context__, Exception) and not isinstance(error, json.JSONDecodeError):
            error = error.__context__
        if isinstance(error, FileNotFoundError):
            raise UserError(f"the data set's file is not there: {error.filename or error}") from error
        file = (config.get("ann_file") if isinstance(config, Mapping) else None) or name
        if isinstance(error, json.JSONDecodeError):
            raise UserError(f"the annotation file {file} is not JSON, or only part of it: {error}") from error
        if isinstance(error, KeyError) and error.args[0] in _COCO_KEYS:
            raise UserError(f"cannot read the data set {file} as COCO's instances: there is no {error}") from error
        raise UserError(f"cannot read the data set {file}: {first_line(error)}") from error
