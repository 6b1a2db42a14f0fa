"""COCO metrics of a detector: images decoded once and kept on its device, run in batches, judged while more are run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsevit.console import Step
from sparsevit.errors import UserError
from sparsevit.openmmlab.coco_scoring import Scoring, Truth
from sparsevit.openmmlab.datasets import test_dataset
from sparsevit.openmmlab.detections import Detections
from sparsevit.openmmlab.host_copy import HostCopy

CACHE_BYTES = 2 << 30  # decoded images kept in the host's memory; beyond it they are decoded again each time


class DetectorEvaluation:
    """A data set that detectors are judged on, again and again.

    Args:
        batch: images run at once.
        on_device: keep images on the detector's GPU, in a quarter of the memory that is free there when the first one
            is decoded. Not while it is being trained.
    """

    def __init__(self, dataset: Any, *, batch: int = 1, on_device: bool = False) -> None:
        self.dataset = dataset
        self.batch = batch
        self.on_device = on_device
        self._most_bytes: int | None = None
        self._cache: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        self._cached_bytes = 0
        self._device = torch.device("cpu")
        self._truth: Truth | None = None

    @classmethod
    def of_dataset(cls, config: Mapping[str, Any], *, batch: int = 1, on_device: bool = False) -> DetectorEvaluation:
        """From an mmdet data set config (`data.val` or `data.test`).

        Raises:
            UserError: if its files are not there, it is not in COCO format, or it holds no image.
        """
        return cls(test_dataset(config, batched=batch > 1), batch=batch, on_device=on_device)

    def __len__(self) -> int:
        return len(self.dataset)

    def metrics(
        self,
        model: nn.Module,
        *,
        images: int | None = None,
        step: Step | None = None,
        backbone: nn.Module | None = None,
        masks: bool = True,
    ) -> dict[str, float]:
        """`bbox_mAP`, `bbox_mAP_50`, … and, if the model has masks, `segm_mAP`, …; fractions.

        A figure is 0 where there is nothing to find, such as for `bbox_mAP_s` without a small object.
        The model is judged on the first `images` images under the sparsity it has, in eval mode, on its own device.

        Args:
            backbone: runs in the place of the model's own, as an accelerated copy of it does.
            masks: whether masks are computed and judged, if the model has any.
        """
        count = len(self) if images is None else min(images, len(self))
        model.eval()
        self._device = next(model.parameters()).device
        if self._truth is None or self._truth.images != count:
            self._truth = Truth(self.dataset, count)
        with torch.inference_mode(), Scoring(self._truth) as scoring:
            for images, found in self._detections(model, backbone, count, masks):
                scoring.add(found)
                if step:
                    step(images)
            return scoring.figures()

    def image(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Image `index` as the detector gets it, shape `(3, H, W)`, and mmdet's meta data of it."""
        if index in self._cache:
            return self._cache[index]
        try:
            sample = self.dataset[index]
        except FileNotFoundError as error:
            raise UserError(f"the data set's image is not there: {error.filename or error}") from error
        image, meta = _open(sample["img"]), _open(sample["img_metas"])
        if self.on_device:
            image = image.to(self._device)
        if self._most_bytes is None:
            on_gpu = self.on_device and self._device.type == "cuda"
            self._most_bytes = torch.cuda.mem_get_info(self._device)[0] // 4 if on_gpu else CACHE_BYTES
        size = image.numel() * image.element_size()
        if self._cached_bytes + size <= self._most_bytes:
            self._cached_bytes += size
            self._cache[index] = (image, meta)
        return image, meta

    def smaller_batch(self) -> bool:
        """Halve the batch from now on, and forget the images that are kept; `False` if it is one image already."""
        if self.batch == 1:
            return False
        self.batch //= 2
        self._cache.clear()
        self._cached_bytes, self._most_bytes = 0, None
        return True

    def _batches(self, count: int) -> Iterator[tuple[list[int], Tensor, list[dict[str, Any]]]]:
        """Images of one shape, at most `batch` at a time, with their indices; each image once."""
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor, dict[str, Any]]]] = {}
        for index in range(count):
            image, meta = self.image(index)
            alike = waiting.setdefault(tuple(image.shape), [])
            alike.append((index, image, meta))
            if len(alike) == self.batch:
                yield _stacked(waiting.pop(tuple(image.shape)), self._device)
        for alike in waiting.values():
            yield _stacked(alike, self._device)

    def _detections(
        self, model: nn.Module, backbone: nn.Module | None, count: int, masks: bool
    ) -> Iterator[tuple[int, Detections]]:
        """What is found in each batch, after the number of its images."""
        from sparsevit.openmmlab.batched_test import BatchedTest, fits

        if not fits(model):
            with _standing_in(model, backbone):
                for indices, images, metas in self._batches(count):
                    results = model(return_loss=False, rescale=True, img=[images], img_metas=[metas])
                    yield len(indices), Detections.of_results(indices, results, masks=masks)
            return
        tester = BatchedTest(model)
        run = backbone or tester.model.backbone
        before: list[tuple[list[int], Any, HostCopy]] = []  # the batch that is finished while this one runs
        for indices, images, metas in self._batches(count):
            found = tester.detect(run(images), metas)
            before.append((indices, found, HostCopy(found.packed)))
            if len(before) > 1:
                done, made, copied = before.pop(0)
                yield len(done), tester.detections(made, copied.wait(), done, masks=masks and tester.masks)
        for done, made, copied in before:
            yield len(done), tester.detections(made, copied.wait(), done, masks=masks and tester.masks)


@contextlib.contextmanager
def _standing_in(model: Any, backbone: nn.Module | None) -> Iterator[None]:
    """Another backbone runs in the place of the model's own."""
    own = model.backbone if backbone is not None else None
    if own is not None:
        model.backbone = backbone
    try:
        yield
    finally:
        if own is not None:
            model.backbone = own


def _stacked(
    alike: list[tuple[int, Tensor, dict[str, Any]]], device: torch.device
) -> tuple[list[int], Tensor, list[dict[str, Any]]]:
    indices, images, metas = zip(*alike, strict=True)
    return list(indices), torch.stack([each.to(device) for each in images]), [dict(each) for each in metas]


def _open(value: Any) -> Any:
    """What a test pipeline yields for one image: a list over augmentations (one here), maybe in a container."""
    if isinstance(value, list):
        if len(value) > 1:
            raise UserError("the test pipeline augments images; give MultiScaleFlipAug one img_scale and flip=False")
        value = value[0]
    return getattr(value, "data", value) if not isinstance(value, Tensor) else value
