"""A training batch on its way: samples of one image each, a batch in host memory, and the batch on the device.

B images, H and W height and width of the batch in pixels, N objects of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from sparsevit.openmmlab.masks import DeviceMasks
from sparsevit.openmmlab.packed_masks import START, PackedMasks, unpack_batch


@dataclass(frozen=True)
class Sample:
    """One image, neither flipped nor normalised yet, and its boxes, which are flipped already.

    image: BGR, uint8 or float32, shape `(h, w, 3)`.
    boxes: `gt_bboxes` and `gt_bboxes_ignore`, where the batch has them, `(n, 4)`.
    labels, masks: of `gt_bboxes`, or None.
    meta: mmdet's, with `pad_shape` as it was before the image meets the others.
    padded: height and width after padding.
    direction: the image and its masks are still to be flipped this way.
    """

    image: NDArray[Any]
    boxes: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64] | None
    masks: PackedMasks | None
    meta: dict[str, Any]
    padded: tuple[int, int]
    direction: str | None


@dataclass(frozen=True)
class HostBatch:
    """A batch in few tensors, so that it travels fast between processes and to the device.

    images: `(B, H, W, 3)` BGR, arbitrary outside of each image.
    frames: height and width of each image, whether it is flipped from left to right, and from top to bottom.
    boxes, counts: by key, of all images `(N, 4)`, and how many each image has.
    labels: `(N,)`.
    bits, table: masks of all images; see `PackedMasks`.
    mask_frames: `frames` of each mask's image, int32 `(N, 4)`.
    """

    images: Tensor
    frames: list[tuple[int, int, bool, bool]]
    boxes: dict[str, Tensor]
    counts: dict[str, list[int]]
    labels: Tensor | None
    bits: Tensor | None
    table: Tensor | None
    mask_frames: Tensor | None
    metas: list[dict[str, Any]]

    def pin_memory(self) -> HostBatch:
        """The same in memory that the device can read by itself; torch's loader calls it."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> HostBatch:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, function: Any) -> HostBatch:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
        return replace(self, boxes={key: function(value) for key, value in self.boxes.items()}, **changed)


def collate(samples: Sequence[Sample]) -> HostBatch:
    """Samples side by side, as large as the largest of them after padding."""
    height, width = (max(sample.padded[side] for sample in samples) for side in (0, 1))
    floating = any(sample.image.dtype != np.uint8 for sample in samples)
    images = _room((len(samples), height, width, 3), torch.float32 if floating else torch.uint8)
    pixels = images.numpy()
    frames = []
    for place, sample in zip(pixels, samples, strict=True):
        h, w = sample.image.shape[:2]
        place[:h, :w] = sample.image
        direction = sample.direction
        frames.append((h, w, direction in ("horizontal", "diagonal"), direction in ("vertical", "diagonal")))
    first = samples[0]
    boxes = {key: np.concatenate([sample.boxes[key] for sample in samples]) for key in first.boxes}
    masks = [sample.masks for sample in samples if sample.masks is not None]
    bits, table, mask_frames = _join_masks(masks, frames)
    labels = [sample.labels for sample in samples if sample.labels is not None]
    return HostBatch(
        images=images,
        frames=frames,
        boxes={key: torch.from_numpy(value) for key, value in boxes.items()},
        counts={key: [len(sample.boxes[key]) for sample in samples] for key in first.boxes}
        | {"gt_labels": [len(each) for each in labels]}
        | {"gt_masks": [len(each.table) for each in masks]},
        labels=torch.from_numpy(np.concatenate(labels)) if labels else None,
        bits=bits,
        table=table,
        mask_frames=mask_frames,
        metas=[sample.meta for sample in samples],
    )


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a batch; a worker takes it where the other process sees it, which saves a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    empty: Any = torch.empty(0, dtype=dtype)
    storage = empty.untyped_storage()._new_shared(int(np.prod(shape)) * dtype.itemsize, device="cpu")
    room: Tensor = empty.set_(storage, 0, shape)
    return room


def _join_masks(
    masks: Sequence[PackedMasks], frames: Sequence[tuple[int, int, bool, bool]]
) -> tuple[Tensor | None, ...]:
    """Bits, table and frames of the masks of all images."""
    if not masks:
        return None, None, None
    tables = [each.table.copy() for each in masks]
    start = 0
    for table, each in zip(tables, masks, strict=True):
        table[:, START] += start
        start += len(each.bits)
    owned = np.repeat(np.array(frames, np.int32), [len(table) for table in tables], axis=0)
    joined = (np.concatenate([each.bits for each in masks]), np.concatenate(tables), owned)
    return tuple(torch.from_numpy(array) for array in joined)


@dataclass(frozen=True)
class Normalization:
    """What mmdet's `Normalize` does to pixels: `(pixel - mean) * scale`; both float32 `(3, 1, 1)`, on the device."""

    mean: Tensor
    scale: Tensor
    to_rgb: bool

    @classmethod
    def of(cls, transform: Any, device: torch.device) -> Normalization:
        mean, scale = (torch.as_tensor(each, dtype=torch.float32) for each in (transform.mean, 1 / transform.std))
        return cls(mean.view(3, 1, 1).to(device), scale.view(3, 1, 1).to(device), transform.to_rgb)


def finish(batch: HostBatch, normalization: Normalization, *, channels_last: bool = False) -> dict[str, Any]:
    """What a detector trains on, from a batch that is on the device: mmdet's keys, containers opened.

    `img` is float32 `(B, 3, H, W)`; boxes, labels and `DeviceMasks` are lists by image.

    Args:
        channels_last: lay `img` out with channels last.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    data: dict[str, Any] = {"img_metas": batch.metas, "img": _normalised(batch, normalization, layout)}
    for key, boxes in batch.boxes.items():
        data[key] = list(torch.split(boxes, batch.counts[key]))
    if batch.labels is not None:
        data["gt_labels"] = list(torch.split(batch.labels, batch.counts["gt_labels"]))
    if batch.bits is not None and batch.table is not None and batch.mask_frames is not None:
        height, width = batch.images.shape[1:3]
        masks = unpack_batch(
            batch.bits,
            batch.table,
            batch.mask_frames,
            (height, width),
            mirrored=any(frame[2] for frame in batch.frames),
        )
        data["gt_masks"] = [DeviceMasks(each) for each in torch.split(masks, batch.counts["gt_masks"])]
    return data


def _normalised(batch: HostBatch, normalization: Normalization, layout: torch.memory_format) -> Tensor:
    """Images flipped and normalised, 0 outside of each; float32 `(B, 3, H, W)`."""
    count, height, width, channels = batch.images.shape
    result = torch.empty(
        (count, channels, height, width), dtype=torch.float32, device=batch.images.device, memory_format=layout
    ).zero_()
    for place, pixels, (h, w, mirrored, upside_down) in zip(result, batch.images, batch.frames, strict=True):
        turned = [axis for axis, wanted in enumerate((upside_down, mirrored, normalization.to_rgb)) if wanted]
        image = pixels[:h, :w].flip(turned) if turned else pixels[:h, :w]
        torch.sub(image.permute(2, 0, 1), normalization.mean, out=place[:, :h, :w])
    return result.mul_(normalization.scale)
