"""What training needs of mmcv's epoch-based runner besides: a length in iterations, and resuming from weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import RUNNERS, EpochBasedRunner

from sparsevit.errors import UserError, first_line


@RUNNERS.register_module()
class EpochsToIteration(EpochBasedRunner):  # type: ignore[misc]  # mmcv is untyped
    """Epochs, of which the last one is cut: checkpoints, seeds and resuming are those of any other training.

    Args:
        max_iters: iterations in all.
        max_epochs: epochs they reach into.
    """

    def __init__(self, *arguments: Any, max_iters: int, max_epochs: int, **more: Any) -> None:
        super().__init__(*arguments, max_epochs=max_epochs, **more)  # mmcv takes one of the two alone
        self._end = max_iters

    @property
    def max_iters(self) -> int:
        """Iterations in all; learning rates are scheduled over them."""
        return self._end

    def train(self, data_loader: Any, **more: Any) -> None:
        super().train(_Cut(data_loader, self._end - self.iter), **more)


def resume(runner: EpochBasedRunner, checkpoint: Path) -> None:
    """Put a runner, whose model has a checkpoint's weights already, where the training stood that wrote it.

    mmcv's own `resume` executes the config that is stored in a checkpoint; this reads tensors and numbers alone.

    Raises:
        UserError: if the file holds no training, or one with another optimizer.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        runner._epoch, runner._iter = int(content["meta"]["epoch"]), int(content["meta"]["iter"])
        runner.optimizer.load_state_dict(content["optimizer"])
    except Exception as error:
        raise UserError(
            f"{checkpoint} has weights, but no training of this kind to go on with; load_from starts anew from them "
            f"({first_line(error)})"
        ) from error


class _Cut:
    """A data loader of which an epoch has at most `batches` batches; all else is the loader's."""

    def __init__(self, loader: Any, batches: int) -> None:
        self._loader, self._batches = loader, batches

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
