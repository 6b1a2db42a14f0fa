"""Loads an mmdet data set in COCO format as fast as a GPU trains: images cached, workers kept, the rest on the device.

The order of images is that of mmdet's own samplers. What is random is drawn from seed, epoch and index, so it depends
neither on the number of workers nor on where a run was resumed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.core import BitmapMasks
from mmdet.datasets import CustomDataset, RepeatDataset
from mmdet.datasets.samplers import DistributedGroupSampler, GroupSampler
from torch.utils.data import DataLoader, Dataset

from sparsevit.console import console
from sparsevit.errors import UserError
from sparsevit.openmmlab.device_batch import HostBatch, Normalization, Sample, collate, finish
from sparsevit.openmmlab.image_cache import MOST_GB, ImageCache, key_of
from sparsevit.openmmlab.masks import DeviceMasks
from sparsevit.openmmlab.packed_masks import PackedMasks
from sparsevit.openmmlab.pipeline import CannotSplitError, Split, split

PREFETCHED = 3  # batches that each worker keeps ready


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
        UserError: if `cache` is something else.
    """
    try:
        images = PreparedImages(dataset, _open_cache(cache, ranks), seed)
    except CannotSplitError as reason:
        console.print(f"data: mmdet's own loader is used, because of {reason}", markup=False)
        return None
    if ranks > 1:
        sampler: Any = DistributedGroupSampler(dataset, batch, ranks, rank, seed=seed)
    else:
        sampler = GroupSampler(dataset, batch)
    return DeviceLoader(images, sampler, batch, workers, device)


def _open_cache(settings: Mapping[str, Any] | bool, ranks: int) -> ImageCache | None:
    if settings is False:
        return None
    given = {} if settings is True else dict(settings)
    folder, max_gb = given.pop("folder", None), given.pop("max_gb", MOST_GB)
    if given or not isinstance(max_gb, int | float) or max_gb < 0:
        raise UserError(f"data.image_cache is {settings!r}: give False, or a dict with folder and max_gb (at least 0)")
    return ImageCache.within(Path(folder) if folder else None, max_gb, ranks)


class PreparedImages(Dataset[Sample]):
    """Images of an mmdet data set up to where the device takes over; indexed by epoch and index.

    Raises:
        CannotSplitError: if the data set's class or pipeline leaves no room for that.
    """

    def __init__(self, dataset: Any, cache: ImageCache | None, seed: int) -> None:
        self.dataset = dataset
        source = dataset.dataset if type(dataset) is RepeatDataset else dataset
        kind = type(source)
        if not isinstance(source, CustomDataset):
            raise CannotSplitError(f"the data set {kind.__name__}")
        if (kind.__getitem__, kind.prepare_train_img) != (CustomDataset.__getitem__, CustomDataset.prepare_train_img):
            raise CannotSplitError(f"the data set {kind.__name__}, which prepares images in its own way")
        if source.proposals is not None:
            raise CannotSplitError("proposals")
        self.source = source
        self.split: Split = split(source.pipeline.transforms)
        self.cache = cache
        self.seed = seed % 2**63

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """The image at `(epoch, index)`, with what is random drawn from these and the seed alone."""
        epoch, index = place
        draws = np.random.SeedSequence((self.seed, epoch, index))
        with _drawing(draws) if self.split.middle else nullcontext():
            results = self._after_middle(index % len(self.source))
        return self._sample(results, np.random.default_rng(draws))

    def _after_middle(self, index: int) -> dict[str, Any]:
        while True:
            before = self._before_middle(index)
            results = self._through_middle(before) if self.split.middle else before
            if results is not None:
                return results
            index = self.source._rand_another(index)  # as mmdet does

    def _through_middle(self, results: dict[str, Any]) -> dict[str, Any] | None:
        for name in results["mask_fields"]:
            packed = results[name]
            results[name] = BitmapMasks(packed.unpack(), packed.height, packed.width)
        for transform in self.split.middle:
            changed = transform(results)
            if changed is None:
                return None
            results = changed
        return results

    def _before_middle(self, index: int) -> dict[str, Any]:
        """What mmdet's pipeline holds after the deterministic part, masks packed."""
        results: dict[str, Any] = {
            "img_info": self.source.data_infos[index],
            "ann_info": self.source.get_ann_info(index),
        }
        self.source.pre_pipeline(results)
        if self.cache is not None:
            key = key_of(results, self.split.settings)
            found = self.cache.read(key)
            if found is not None:
                return {**results, **found}
        for transform in self.split.once:
            made = transform(results)
            assert made is not None
            results = made
        for name in results["mask_fields"]:
            results[name] = PackedMasks.of(results[name].masks)
        if self.cache is not None:
            self.cache.keep(key, results)
        return results

    def _sample(self, results: dict[str, Any], generator: np.random.Generator) -> Sample:
        on_device = self.split.on_device
        image, shape = results["img"], results["img_shape"]
        direction = results.get("flip_direction") if "flip" in results else on_device.draw_flip(generator)
        masks = results.get("gt_masks") if "gt_masks" in on_device.keys else None
        if isinstance(masks, BitmapMasks):
            masks = PackedMasks.of(masks.masks)
        return Sample(
            image=image,
            boxes={
                key: on_device.flip_boxes(results[key], shape, direction)
                for key in ("gt_bboxes", "gt_bboxes_ignore")
                if key in on_device.keys
            },
            labels=results["gt_labels"] if "gt_labels" in on_device.keys else None,
            masks=masks,
            meta=on_device.describe(results, direction),
            padded=on_device.padded(image.shape)[:2],  # type: ignore[arg-type]
            direction=direction if on_device.flip is not None else None,
        )


class DeviceLoader:
    """Batches on the training device; the next one is on its way there while the current one is trained on."""

    def __init__(self, images: PreparedImages, sampler: Any, batch: int, workers: int, device: torch.device) -> None:
        self.dataset = images.dataset
        self.sampler = self  # training tells a loader's sampler the epoch
        self.device = device
        self._normalization = Normalization.of(images.split.on_device.normalize, device)
        self._order = _EpochSampler(sampler)
        self._batches = DataLoader(
            images,
            batch_size=batch,
            sampler=self._order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCHED if workers else None,
        )

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.device.type != "cuda":
            for host in self._batches:
                yield finish(host, self._normalization)
            return
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        sent: tuple[dict[str, Any], torch.cuda.Event] | None = None
        for host in self._batches:
            following = self._send(host, stream)
            if sent is not None:
                yield self._received(*sent)
            sent = following
        if sent is not None:
            yield self._received(*sent)

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


class _EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Indices of a sampler with the epoch beside each, for workers that live through many epochs."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self._epoch, int(index)) for index in self._sampler)


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # there are as many workers as cores


@contextmanager
def _drawing(draws: np.random.SeedSequence) -> Iterator[None]:
    """Seeds the generators that mmdet's transforms draw from, and puts them back."""
    generator = torch.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()
    words = draws.generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])
