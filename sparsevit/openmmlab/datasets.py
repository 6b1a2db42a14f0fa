"""Opening the data sets of a config, and saying plainly what is wrong with one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from mmdet.datasets import DATASETS, build_dataset, replace_ImageToTensor

from sparsevit.errors import UserError
from sparsevit.openmmlab.config import first_line


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
    kind = DATASETS.get(config["type"]) if isinstance(config.get("type"), str) else None
    prepare = getattr(kind, "prepare", None)
    try:
        if prepare is not None:
            prepare(**{key: value for key, value in config.items() if key != "type"})
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints while it reads
            return build_dataset(config, defaults)
    except UserError:
        raise
    except Exception as error:
        # mmcv raises its own copy of what a class raised; the first one knows the file.
        while error.__context__ is not None and isinstance(error.__context__, Exception):
            error = error.__context__
        if isinstance(error, FileNotFoundError):
            raise UserError(f"the data set's file is not there: {error.filename or error}") from error
        name = config.get("ann_file") or config.get("type")
        raise UserError(f"cannot read the data set {name}: {first_line(error)}") from error
