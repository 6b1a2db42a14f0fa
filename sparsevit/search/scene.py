"""What a subnet does with one image, as plain values: the windows that each layer keeps, and what is detected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from sparsevit.sparsity import Sparsity


@dataclass(frozen=True)
class LayerWindows:
    """What one layer does.

    Attributes:
        kept: windows that it computes, of `windows`.
        computed: the share of the layer's blocks that compute each token, shape `(height, width)` in tokens, over the
            image alone.
    """

    kept: int
    windows: int
    computed: NDArray[Any]


@dataclass(frozen=True)
class Detection:
    """A box in fractions of the image's width and height, its class and its score (0 to 1)."""

    left: float
    top: float
    right: float
    bottom: float
    label: str
    score: float


@dataclass(frozen=True)
class Scene:
    """One image under one sparsity.

    Attributes:
        image: as the backbone sees it, shape `(height, width, 3)`, uint8, RGB.
        layers: first to last.
        detections: most certain first.
    """

    image: NDArray[Any]
    layers: Sequence[LayerWindows]
    detections: Sequence[Detection]


@runtime_checkable
class Illustrated(Protocol):
    """Optional for an evaluator: shows what a subnet does with an image of the data set."""

    def scenes(self) -> int:
        """How many images there are."""

    def scene(self, sparsity: Sparsity, index: int) -> Scene:
        """What the subnet does with image `index`, from 0."""
