"""What the workers of a data loader do: an image of an mmdet data set up to where the device takes over.

What is random is drawn from seed, epoch and index, so it depends neither on the number of workers nor on where a run
was resumed.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from mmdet.core import BitmapMasks
from mmdet.datasets import CustomDataset, RepeatDataset
from numpy.typing import NDArray
from torch.utils.data import Dataset

from sparsevit.errors import UserError, first_line
from sparsevit.openmmlab.device_batch import Sample
from sparsevit.openmmlab.image_cache import ImageCache, key_of
from sparsevit.openmmlab.packed_masks import PackedMasks
from sparsevit.openmmlab.pipeline import CannotSplitError, Split, split
from sparsevit.openmmlab.seeding import drawing

Prepared = Sample | UserError
"""What a worker hands over. So it does with an error: raised there, it would arrive as a page of traceback."""


class PreparedImages(Dataset[Prepared]):
    """Images of an mmdet data set up to where the device takes over; indexed by epoch and index.

    Raises:
        CannotSplitError: if the data set's class or pipeline leaves no room for that.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
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
        self.cache: ImageCache | None = None
        self.seed = seed % 2**63

    def __len__(self) -> int:
        return len(self.dataset)

    def bytes_needed(self) -> int:
        """What a cache of all images takes, judged by the first one.

        Raises:
            UserError: if that image cannot be prepared.
        """
        try:
            first: NDArray[Any] = self._before_middle(0)["img"]
        except Exception as error:
            raise self._spoilt(0, error) from error
        return first.nbytes * len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Prepared:
        """The image at `(epoch, index)`, with what is random drawn from these and the seed alone."""
        epoch, index = place
        draws = np.random.SeedSequence((self.seed, epoch, index))
        try:
            with drawing(draws) if self.split.middle else nullcontext():
                results = self._after_middle(index % len(self.source))
            return self._sample(results, np.random.default_rng(draws))
        except Exception as error:
            return self._spoilt(index % len(self.source), error)

    def _spoilt(self, index: int, error: Exception) -> UserError:
        """Whatever mmdet's transforms make of a spoilt file, in one line that names it."""
        name = self.source.data_infos[index]["filename"]
        reason = "it is not there" if isinstance(error, FileNotFoundError) else first_line(error)
        return UserError(f"cannot prepare the image {name} of {self.source.ann_file}: {reason}")

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
        direction = None
        if on_device.flip is not None:  # one before has decided for both, as in mmdet
            direction = results["flip_direction"] if "flip" in results else on_device.draw_flip(generator)
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
            direction=direction,
        )
