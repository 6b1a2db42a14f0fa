"""The built-in data set for mmdet: written to disk as COCO, or composed batch by batch on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmdet.datasets import DATASETS, CocoDataset

from sparsevit.data import digits
from sparsevit.data.coco import write_digits
from sparsevit.openmmlab.masks import DeviceMasks


@DATASETS.register_module()
class DigitsDataset(CocoDataset):  # type: ignore[misc]  # mmdet is untyped
    """The built-in data set as a COCO data set that writes itself below `folder` when it is not there yet."""

    CLASSES = digits.CLASSES

    def __init__(
        self,
        *,
        folder: str = "data/digits",
        split: str = "val",
        images: int = 500,
        size: tuple[int, int] = (448, 448),
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        annotation_file = self.prepare(folder=folder, split=split, images=images, size=size, seed=seed)
        super().__init__(ann_file=str(annotation_file), img_prefix=str(annotation_file.parent), **arguments)

    @classmethod
    def prepare(
        cls,
        *,
        folder: str = "data/digits",
        split: str = "val",
        images: int = 500,
        size: tuple[int, int] = (448, 448),
        seed: int = 0,
        **_: Any,
    ) -> Path:
        """Write the data set unless it is there, and return its annotation file."""
        height, width = size
        place = Path(folder) / f"{split}-{images}-{height}x{width}-{seed}"
        return write_digits(place, split=split, images=images, size=(height, width), seed=seed)


@DATASETS.register_module()
class DigitsStream:
    """Training batches that are composed on the device they are used on: endless, never the same image twice.

    Args:
        images: images in an epoch, over all ranks.
        size: height and width in pixels.
        crowd: fewest and most digits of an image, size of the largest, and how far they spread; see `digits.Crowd`.
        mean, std: per channel (RGB, 0 to 255), as in the test pipeline.
    """

    CLASSES = digits.CLASSES

    def __init__(
        self,
        *,
        images: int,
        size: tuple[int, int] = (448, 448),
        seed: int = 1,
        crowd: tuple[int, int, float, float] = (3, 8, 0.22, 0.5),
        mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        std: tuple[float, ...] = (58.395, 57.12, 57.375),
    ) -> None:
        height, width = size
        self.images, self.size, self.seed = images, (height, width), seed
        self.crowd = digits.Crowd(*crowd)
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return self.images

    def loader(self, batch: int, rank: int, ranks: int, device: torch.device) -> StreamLoader:
        """This rank's share of each epoch, as a data loader for mmcv's runner."""
        return StreamLoader(self, batch, rank, ranks, device)


class StreamLoader:
    """Iterates epochs of a stream; every epoch goes on where the last one ended."""

    def __init__(self, stream: DigitsStream, batch: int, rank: int, ranks: int, device: torch.device) -> None:
        self.dataset = stream
        self.batch, self.rank, self.ranks, self.device = batch, rank, ranks, device
        self.sampler = self  # training tells a loader's sampler the epoch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return max(1, self.dataset.images // (self.batch * self.ranks))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = self.dataset
        start = self._epoch * len(self) * self.ranks + self.rank
        batches = digits.batches(
            "train",
            stream.seed,
            stream.size,
            self.batch,
            crowd=stream.crowd,
            start=start,
            stride=self.ranks,
            device=self.device,
        )
        mean = torch.tensor(stream.mean, device=self.device)[:, None, None]
        std = torch.tensor(stream.std, device=self.device)[:, None, None]
        for _ in range(len(self)):
            rendered = next(batches)
            yield {
                "img": (rendered.images.float() - mean) / std,
                "img_metas": [_meta(stream.size) for _ in range(self.batch)],
                "gt_bboxes": rendered.boxes,
                "gt_labels": rendered.labels,
                "gt_masks": [DeviceMasks(masks) for masks in rendered.masks],
            }


def _meta(size: tuple[int, int]) -> dict[str, Any]:
    shape = (*size, 3)
    return {"img_shape": shape, "pad_shape": shape, "ori_shape": shape, "scale_factor": 1.0, "flip": False}
