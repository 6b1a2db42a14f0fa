"""What a search asks of a supernet. Implement these two methods and name the factory in the study file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from sparsevit.console import Step
from sparsevit.sparsity import Sparsity


class Evaluator(Protocol):
    """A supernet that can be timed and judged under any sparsity."""

    def backbone(self) -> nn.Module:
        """The part whose latency is searched for; a `sparsevit.model.protocol.SparseBackbone`."""

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
class Described(Protocol):
    """Optional: says for people what is searched. Kept with the study; accuracies do not depend on its words."""

    def description(self) -> Mapping[str, str]:
        """Such as `{"detector": "MaskRCNN", "data": "instances_val2017.json, 5000 images of 80 classes"}`."""


@runtime_checkable
class EndToEnd(Protocol):
    """Optional: has a whole detector to time, for targets of that scope."""

    def detector(self) -> nn.Module:
        """A `sparsevit.model.protocol.SparseDetector` around the backbone."""


@runtime_checkable
class Shrinkable(Protocol):
    """Optional: evaluates in batches, which may be smaller where memory does not suffice. Accuracies stay the same."""

    def smaller_batch(self) -> bool:
        """Halve the batch from now on; `False` if it cannot be smaller."""


@runtime_checkable
class Exporter(Protocol):
    """Optional: hands a found sparsity back in the user's own training framework."""

    def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
        """Write a finetune config (with one comment line per line of `provenance`) to `path` and return it."""
