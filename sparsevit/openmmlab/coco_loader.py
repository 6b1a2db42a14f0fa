"""Loads an mmdet data set in COCO format as fast as a GPU trains: images cached, workers kept, the rest on the device.

The order of images is that of mmdet's own samplers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sparsevit.console import console
from sparsevit.errors import UserError
from sparsevit.openmmlab.device_batch import HostBatch, Normalization, collate, finish
from sparsevit.openmmlab.image_cache import MOST_GB, ImageCache, default_folder, digest
from sparsevit.openmmlab.masks import DeviceMasks
from sparsevit.openmmlab.pipeline import CannotSplitError
from sparsevit.openmmlab.prepared_images import Prepared, PreparedImages
from sparsevit.openmmlab.seeding import EpochSampler, group_sampler, own_generator


def device_loader(
    dataset: Any,
    batch: int,
    workers: int,
    rank: int,
    ranks: int,
    device: torch.device,
    seed: int,
    cache: Mapping[str, Any] | bool = True,
) -> DeviceLoader | None:
    """A loader for mmcv's runner, or None, which is said in a line, if mmdet's own has to load this data set.

    Args:
        dataset: an mmdet data set, built for training.
        batch: images of a batch, on each rank.
        cache: `folder` and `max_gb` of the cached images, or whether to cache at all.

    Raises:
        UserError: if `cache` is something else, or its folder cannot be written.
    """
    try:
        images = PreparedImages(dataset, seed)
    except CannotSplitError as reason:
        console.print(f"data: loaded by mmdet's own pipeline, on the CPU, because of {reason}", markup=False)
        return None
    images.cache = _open_cache(cache, images, ranks)
    return DeviceLoader(images, group_sampler(dataset, batch, rank, ranks, seed), batch, workers, device)


def _open_cache(settings: Mapping[str, Any] | bool, images: PreparedImages, ranks: int) -> ImageCache | None:
    if settings is False:
        return None
    given = {} if settings is True else dict(settings) if isinstance(settings, Mapping) else {"": settings}
    folder, max_gb = given.pop("folder", None), given.pop("max_gb", MOST_GB)
    number = isinstance(max_gb, int | float) and not isinstance(max_gb, bool)
    if given or not isinstance(folder, str | None) or not number or max_gb < 0:
        raise UserError(
            f"data.image_cache is {settings!r}: give False, or a dict with folder, max_gb (at least 0), or both"
        )
    root = Path(folder) if folder else default_folder()
    group = digest(os.path.abspath(images.source.ann_file), images.split.settings)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    try:
        cache = ImageCache.within(root, group, images.bytes_needed(), max_gb=max_gb, processes=local_ranks)
    except OSError as error:
        reason = f"cannot keep images in {root}: {(error.strerror or str(error)).lower()}"
        if folder:
            raise UserError(f"{reason}; give data.image_cache another folder, or False") from error
        console.print(f"data: {reason}; each is decoded anew every time", markup=False)
        return None
    console.print(
        f"data: decoded images are kept in {root} ({cache.budget * local_ranks / 1e9:.0f} GB left)", markup=False
    )
    return cache


class DeviceLoader:
    """Batches on the training device; the next one is on its way there while the current one is trained on."""

    def __init__(self, images: PreparedImages, sampler: Any, batch: int, workers: int, device: torch.device) -> None:
        self.dataset = images.dataset
        self.sampler = self  # training tells a loader's sampler the epoch
        self.device = device
        self._normalization = Normalization.of(images.split.on_device.normalize, device)
        self._order = EpochSampler(sampler)
        self._batches = DataLoader(
            images,
            batch_size=batch,
            sampler=self._order,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            generator=own_generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches as a detector takes them.

        Raises:
            UserError: if an image cannot be prepared.
        """
        if self.device.type != "cuda":
            for host in self._whole_batches():
                yield finish(host, self._normalization)
            return
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        sent: tuple[dict[str, Any], torch.cuda.Event] | None = None
        for host in self._whole_batches():
            following = self._send(host, stream)
            if sent is not None:
                yield self._received(*sent)
            sent = following
        if sent is not None:
            yield self._received(*sent)

    def _whole_batches(self) -> Iterator[HostBatch]:
        for batch in self._batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _send(self, host: HostBatch, stream: torch.cuda.Stream) -> tuple[dict[str, Any], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            data = finish(host.to(self.device), self._normalization)
            return data, stream.record_event()

    def _received(self, data: dict[str, Any], sent: torch.cuda.Event) -> dict[str, Any]:
        """The batch, for the stream that is current now; its memory stays taken until that stream is done with it."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(sent)
        for values in data.values():
            for value in values if isinstance(values, list) else [values]:
                tensor = value.masks if isinstance(value, DeviceMasks) else value
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(stream)
        return data


def _collate(prepared: list[Prepared]) -> HostBatch | UserError:
    """A batch, or what is wrong with an image of it."""
    samples = []
    for each in prepared:
        if isinstance(each, UserError):
            return each
        samples.append(each)
    return collate(samples)


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # there are as many workers as cores
