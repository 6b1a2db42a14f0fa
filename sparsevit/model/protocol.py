"""What everything above the model needs of a backbone; any that has it can be timed and searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from sparsevit.sparsity import Sparsity


class SparseBackbone(Protocol):
    """A backbone with a settable sparsity, as `sparsevit.model.SparseSwin` is. It is an `nn.Module` in eval mode."""

    depths: tuple[int, ...]
    window_size: int
    patch_size: int
    sparsity: Sparsity

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps of images of shape `(B, 3, H, W)`."""


class SparseDetector(Protocol):
    """A detector around such a backbone, to be timed end to end. It is an `nn.Module` in eval mode.

    Its shape is its backbone's.
    """

    depths: tuple[int, ...]
    window_size: int
    patch_size: int

    @property
    def backbone(self) -> nn.Module:
        """The `SparseBackbone`, which someone else runs, maybe in a lower precision."""

    def example_images(self, batch: int, size: tuple[int, int]) -> Tensor:
        """What to time it on: normalised images, shape `(B, 3, H, W)`, float32, on the CPU; always the same."""

    def detect(self, images: Tensor, features: Sequence[Tensor]) -> int:
        """All that follows the backbone, up to the detections on the CPU, from its feature maps of these images.

        Returns how many objects were found in all of them: what follows a backbone takes the longer the more there are.
        """
