"""An mmdet detector as something to time: from normalised images to the boxes and masks of their objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsevit.errors import UserError
from sparsevit.model.backbone import SparseSwin
from sparsevit.openmmlab.config import build_model, load_config
from sparsevit.openmmlab.datasets import test_dataset
from sparsevit.openmmlab.parallel import casting

NOISE_SEED = 0


class ExampleImages:
    """Images to time a detector on: the first ones of a data set, or noise where there is none.

    Attributes:
        origin: which they are, in words.
    """

    def __init__(self, dataset: Any = None, why_noise: str = "no data set was given") -> None:
        self._dataset = dataset
        self.origin = f"noise, as {why_noise}" if dataset is None else f"images of {dataset.ann_file}"

    @classmethod
    def of_split(cls, split: Any) -> ExampleImages:
        """Those of an mmdet data set config."""
        if split is None:
            return cls(None, "the config has no test data")
        try:
            return cls(test_dataset(split, batched=True))
        except UserError as error:
            return cls(None, str(error))

    def __call__(self, batch: int, size: tuple[int, int]) -> Tensor:
        """Normalised images, shape `(B, 3, H, W)`, each stretched to the size; a small data set repeats."""
        if self._dataset is None:
            return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(NOISE_SEED))
        images = [self._image(index % len(self._dataset)) for index in range(batch)]
        return torch.cat([F.interpolate(image[None], size, mode="bilinear") for image in images])

    def _image(self, index: int) -> Tensor:
        value = self._dataset[index]["img"]
        value = value[0] if isinstance(value, list) else value
        image: Tensor = getattr(value, "data", value) if not isinstance(value, Tensor) else value
        return image.float()

    def __deepcopy__(self, memo: dict[int, Any]) -> ExampleImages:
        return self  # copies of a detector read the same data set


class TimedDetector(nn.Module):
    """An mmdet detector in eval mode; implements `SparseDetector`."""

    def __init__(self, model: nn.Module, images: ExampleImages) -> None:
        super().__init__()
        self.model = model.eval()
        self.images = images
        self.depths = self.backbone.depths
        self.window_size = self.backbone.window_size
        self.patch_size = self.backbone.patch_size

    @property
    def backbone(self) -> SparseSwin:
        backbone = self.model.backbone
        assert isinstance(backbone, SparseSwin)
        return backbone

    def example_images(self, batch: int, size: tuple[int, int]) -> Tensor:
        """See `ExampleImages`."""
        return self.images(batch, size)

    def detect(self, images: Tensor, features: Sequence[Tensor]) -> int:
        """Neck, heads and post-processing, up to boxes and masks on the CPU; returns how many objects were found.

        Heads run as in accuracy evaluation: on a GPU under autocast to the features' dtype, on a CPU in float32.
        """
        dtype = features[0].dtype if images.is_cuda else torch.float32
        given = _Given([each.to(dtype) for each in features])
        backbone, self.model.backbone = self.model.backbone, given
        try:
            with casting(images.device, dtype):
                metas = _metas(len(images), (images.shape[-2], images.shape[-1]))
                results = self.model(return_loss=False, rescale=True, img=[images], img_metas=[metas])
        finally:
            self.model.backbone = backbone
        boxes = [result[0] if isinstance(result, tuple) else result for result in results]
        return sum(len(per_class) for image in boxes for per_class in image)


class _Given(nn.Module):
    """Stands where the backbone was and hands out feature maps that are there already."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.features = tuple(features)

    def forward(self, _: Tensor) -> tuple[Tensor, ...]:
        return self.features


def _metas(count: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    shape = (*size, 3)
    meta = {
        "filename": "", "ori_filename": "", "ori_shape": shape, "img_shape": shape, "pad_shape": shape,
        "batch_input_shape": size, "scale_factor": np.ones(4, np.float32), "flip": False, "flip_direction": None,
    }  # fmt: skip
    return [dict(meta) for _ in range(count)]


def load_detector(config: str | Path, checkpoint: str | Path | None = None) -> TimedDetector:
    """A config's detector, to be timed on images of its test data where they are there.

    Raises:
        UserError: if config or checkpoint cannot be read, or do not fit together.
    """
    settings = load_config(config)
    split = settings.data.get("test") or settings.data.get("val") if "data" in settings else None
    return TimedDetector(build_model(settings, checkpoint), ExampleImages.of_split(split))
