"""What a search asks of a supernet. Implement these two methods and name the factory in the study file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sparsevit.console import Step
from sparsevit.sparsity import Sparsity


class SparseBackbone(Protocol):
    """A backbone with a settable sparsity, as `sparsevit.model.SparseSwin` is. It is an `nn.Module` in eval mode."""

    depths: tuple[int, ...]
    window_size: int
    patch_size: int
    sparsity: Sparsity

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps of images of shape `(B, 3, H, W)`."""


class Evaluator(Protocol):
    """A supernet that can be timed and judged under any sparsity."""

    def backbone(self) -> nn.Module:
        """The part whose latency is searched for; a `SparseBackbone`."""

    def accuracy(
        self, sparsity: Sparsity, *, images: int | None = None, step: Step | None = None
    ) -> Mapping[str, float]:
        """Metrics (fractions, 0 to 1, higher is better) of the subnet on the first `images` images, or on all.

        `step` is called after each batch with the number of images done. Deterministic: the same sparsity and images
        give the same figures.
        """


@runtime_checkable
class Identified(Protocol):
    """Optional: says what accuracies depend on besides the sparsity, so that the ledger never mixes two supernets."""

    def identity(self) -> Mapping[str, str]:
        """Such as `{"supernet": sha256, "dataset": sha256, "images": "500"}`. Changes when accuracies may."""


@runtime_checkable
class Exporter(Protocol):
    """Optional: hands a found sparsity back in the user's own training framework."""

    def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
        """Write a finetune config (with one comment line per line of `provenance`) to `path` and return it."""
