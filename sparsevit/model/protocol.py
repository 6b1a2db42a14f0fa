"""What everything above the model needs of a backbone; any that has it can be timed and searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sparsevit.sparsity import Sparsity


class SparseBackbone(Protocol):
    """A backbone with a settable sparsity, as `sparsevit.model.SparseSwin` is. It is an `nn.Module` in eval mode."""

    depths: tuple[int, ...]
    window_size: int
    patch_size: int
    sparsity: Sparsity

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps of images of shape `(B, 3, H, W)`."""
