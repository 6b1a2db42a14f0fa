"""Whether a deployed file computes what the backbone does: both are run on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsevit.errors import UserError
from sparsevit.model.backbone import SparseSwin

TOLERANCE = 1e-3  # of the largest value of a map; rounding makes about 1e-6
TRIES = 8


@dataclass(frozen=True)
class Difference:
    """The largest difference between two outputs, and the largest value in the one that is right."""

    largest: float
    value: float

    @property
    def relative(self) -> float:
        return self.largest / self.value


def compare(
    run: Callable[[Tensor], list[Tensor]],
    backbone: SparseSwin,
    size: tuple[int, int],
    batches: Iterable[int],
    path: Path,
) -> Difference:
    """How far `run` is from the backbone on images of each batch.

    Where two windows are equally active to the last digit, rounding decides which of them is kept, and both choices are
    right; so images on which the outputs differ are followed by others. A file that is wrong differs on all.

    Raises:
        UserError: if it differs on all of them; it names `path`.
    """
    found = []
    for batch in batches:
        tried = []
        for seed in range(TRIES):
            tried.append(_difference(run, backbone, _images(batch, size, backbone, seed)))
            if tried[-1].relative <= TOLERANCE:
                break
        else:
            least = min(tried, key=lambda one: one.relative)
            raise UserError(
                f"{path} is not written: for {batch} images its output differs from the backbone's by "
                f"{least.largest:.2g}, of values up to {least.value:.2g}"
            )
        found.append(tried[-1])
    return max(found, key=lambda one: one.relative)


def _difference(run: Callable[[Tensor], list[Tensor]], backbone: SparseSwin, images: Tensor) -> Difference:
    pairs = [
        Difference(float((got - wanted).abs().max()), float(wanted.abs().max()))
        if got.shape == wanted.shape and got.isfinite().all()
        else Difference(float("inf"), 1.0)
        for got, wanted in zip(run(images), backbone(images), strict=True)
    ]
    return max(pairs, key=lambda one: one.relative)


def _images(batch: int, size: tuple[int, int], backbone: SparseSwin, seed: int) -> Tensor:
    """Smooth colours under noise that is strong here and weak there, so that windows differ in how active they are."""
    generator = torch.Generator().manual_seed(seed)
    colours = backbone.patch_embed.projection.in_channels
    coarse = (batch, colours, size[0] // 32 + 1, size[1] // 32 + 1)
    smooth, strength = (
        F.interpolate(torch.randn(coarse, generator=generator), size, mode="bilinear") for _ in range(2)
    )
    return smooth + strength.square() * torch.randn(batch, colours, *size, generator=generator)
