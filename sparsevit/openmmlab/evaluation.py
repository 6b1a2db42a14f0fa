"""COCO metrics of a detector: images decoded once, run in batches, judged in memory.

Figures are those of pycocotools, computed by faster-coco-eval.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsevit.console import Step
from sparsevit.errors import UserError
from sparsevit.openmmlab.datasets import test_dataset

CACHE_BYTES = 2 << 30  # decoded images kept in memory; beyond it they are decoded again each time
_STATS = {"mAP": 0, "mAP_50": 1, "mAP_75": 2, "mAP_s": 3, "mAP_m": 4, "mAP_l": 5}


class DetectorEvaluation:
    """A data set that detectors are judged on, again and again."""

    def __init__(self, dataset: Any, *, batch: int = 1) -> None:
        self.dataset = dataset
        self.batch = batch
        self._cache: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        self._cached_bytes = 0

    @classmethod
    def of_dataset(cls, config: Mapping[str, Any], *, batch: int = 1) -> DetectorEvaluation:
        """From an mmdet data set config (`data.val` or `data.test`).

        Raises:
            UserError: if its files are not there, it is not in COCO format, or it holds no image.
        """
        return cls(test_dataset(config, batched=batch > 1), batch=batch)

    def __len__(self) -> int:
        return len(self.dataset)

    def metrics(self, model: nn.Module, *, images: int | None = None, step: Step | None = None) -> dict[str, float]:
        """`bbox_mAP`, `bbox_mAP_50`, … and, if the model has masks, `segm_mAP`, …; fractions.

        A figure is 0 where there is nothing to find, such as for `bbox_mAP_s` without a small object.
        The model is judged on the first `images` images under the sparsity it has, in eval mode, on its own device.
        """
        count = len(self) if images is None else min(images, len(self))
        model.eval()
        device = next(model.parameters()).device
        results: list[Any] = []
        with torch.inference_mode():
            for batch, metas in self._batches(count):
                found = model(return_loss=False, rescale=True, img=[batch.to(device)], img_metas=[metas])
                results.extend(found)
                if step:
                    step(len(metas))
        return self._judge(results)

    def _batches(self, count: int) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        """Consecutive images of one shape, at most `batch` at a time."""
        images: list[Tensor] = []
        metas: list[dict[str, Any]] = []
        for index in range(count):
            image, meta = self._image(index)
            if images and (len(images) == self.batch or image.shape != images[0].shape):
                yield torch.stack(images), metas
                images, metas = [], []
            images.append(image)
            metas.append(meta)
        yield torch.stack(images), metas

    def _image(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if index in self._cache:
            return self._cache[index]
        try:
            sample = self.dataset[index]
        except FileNotFoundError as error:
            raise UserError(f"the data set's image is not there: {error.filename or error}") from error
        image, meta = _open(sample["img"]), _open(sample["img_metas"])
        size = image.numel() * image.element_size()
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cached_bytes += size
            self._cache[index] = (image, meta)
        return image, meta

    def _judge(self, results: list[Any]) -> dict[str, float]:
        from faster_coco_eval import COCO, COCOeval_faster

        ids = self.dataset.img_ids[: len(results)]
        detections = _as_coco(results, ids, self.dataset.cat_ids)
        kinds = ("bbox", "segm") if isinstance(results[0], tuple) else ("bbox",)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(self.dataset.coco.dataset)
            figures: dict[str, float] = {}
            for kind in kinds:
                unused = "segmentation" if kind == "bbox" else "bbox"
                entries = [{key: value for key, value in entry.items() if key != unused} for entry in detections]
                if entries:
                    judge = COCOeval_faster(truth, truth.loadRes(entries), iouType=kind)
                    judge.params.imgIds = ids
                    judge.params.catIds = self.dataset.cat_ids
                    judge.run()
                    stats = judge.stats
                else:
                    stats = np.zeros(6)
                figures.update({f"{kind}_{name}": max(0.0, float(stats[place])) for name, place in _STATS.items()})
        return figures


def _open(value: Any) -> Any:
    """What a test pipeline yields for one image: a list over augmentations (one here), maybe in a container."""
    if isinstance(value, list):
        if len(value) > 1:
            raise UserError("the test pipeline augments images; give MultiScaleFlipAug one img_scale and flip=False")
        value = value[0]
    return getattr(value, "data", value) if not isinstance(value, Tensor) else value


def _as_coco(results: list[Any], image_ids: list[int], category_ids: list[int]) -> list[dict[str, Any]]:
    """mmdet's results (a list per class of `(n, 5)` boxes, and of RLE masks) as COCO's entries."""
    entries: list[dict[str, Any]] = []
    for image_id, result in zip(image_ids, results, strict=True):
        boxes, masks = result if isinstance(result, tuple) else (result, None)
        for label, per_class in enumerate(boxes):
            for i, (x1, y1, x2, y2, score) in enumerate(per_class.tolist()):
                entry = {
                    "image_id": image_id,
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
                if masks is not None:
                    entry["segmentation"] = _rle(masks[label][i])
                entries.append(entry)
    return entries


def _rle(mask: Any) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8)) if not isinstance(mask, dict) else mask
    counts = encoded["counts"]
    return {"size": list(encoded["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
