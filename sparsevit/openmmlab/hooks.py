"""Training hooks: the sparsity of each iteration, validation at fixed sparsities, checkpoints, seeds, progress.

They set `backbone.sparsity` and nothing else; no method of the model is replaced.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmcv.runner import HOOKS, Hook, get_dist_info, weights_to_cpu

from sparsevit.adaptation import SparsitySchedule
from sparsevit.console import Step, console, progress
from sparsevit.model.backbone import SparseSwin
from sparsevit.openmmlab.checkpoints import checkpoints, write_checkpoint
from sparsevit.sparsity import PAPER_GRID, SparsitySpace

if TYPE_CHECKING:
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

SHOWN_EVERY_S = 2.0


def backbone_of(model: torch.nn.Module) -> SparseSwin:
    """The backbone of a detector, also of one that is wrapped for parallel training."""
    backbone = getattr(model, "module", model).backbone
    assert isinstance(backbone, SparseSwin)
    return backbone


@HOOKS.register_module()
class SparsityAdaptation(Hook):  # type: ignore[misc]  # mmcv is untyped
    """Sparsity-Aware Adaptation: a random sparsity each iteration, the same on all ranks.

    Args:
        ratios: the grid that ratios are drawn from.
        seed: of the draws.
    """

    def __init__(self, ratios: Sequence[float | str] = PAPER_GRID, seed: int = 0) -> None:
        self.ratios, self.seed = ratios, seed

    def before_run(self, runner: Any) -> None:
        backbone = backbone_of(runner.model)
        self._schedule = SparsitySchedule(SparsitySpace(backbone.depths, tuple(self.ratios)), self.seed)  # type: ignore[arg-type]
        self._start = backbone.sparsity

    def before_train_iter(self, runner: Any) -> None:
        backbone_of(runner.model).sparsity = self._schedule(runner.iter)

    def after_train_epoch(self, runner: Any) -> None:
        backbone_of(runner.model).sparsity = self._start


@HOOKS.register_module()
class EvaluateSparsities(Hook):  # type: ignore[misc]
    """Validation at fixed sparsities, each reported under its name.

    Args:
        dataset: an mmdet data set config; evaluated with COCO metrics.
        sparsities: name to sparsity, in any form `Sparsity.of` accepts.
        interval: epochs between validations; the last epoch is always validated.
        images: at most this many images.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        sparsities: Mapping[str, Any],
        interval: int = 1,
        images: int | None = None,
        batch: int = 1,
    ) -> None:
        self.dataset, self.sparsities = dataset, sparsities
        self.interval, self.images, self.batch = interval, images, batch
        self._evaluation: DetectorEvaluation | None = None

    def open(self, model: torch.nn.Module) -> None:
        """Open the data set and see that the detector can be judged on it; only the first rank does.

        Raises:
            UserError: if it cannot.
        """
        from sparsevit.openmmlab.data_checks import check_test_data
        from sparsevit.openmmlab.evaluation import DetectorEvaluation

        if get_dist_info()[0] == 0:
            self._evaluation = DetectorEvaluation.of_dataset(self.dataset, batch=self.batch)
            check_test_data(self._evaluation.dataset, model, images=self.images, key="data.val")

    def before_run(self, runner: Any) -> None:
        if runner.rank == 0 and self._evaluation is None:  # named among custom_hooks
            self.open(getattr(runner.model, "module", runner.model))

    def after_train_epoch(self, runner: Any) -> None:
        if (runner.epoch + 1) % self.interval and runner.epoch + 1 != runner.max_epochs:
            return
        # One rank judges while the others wait: the same figures on any number of ranks.
        if runner.rank == 0:
            self._evaluate(runner)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def _evaluate(self, runner: Any) -> None:
        assert self._evaluation is not None
        model = getattr(runner.model, "module", runner.model)
        backbone = backbone_of(model)
        before = backbone.sparsity
        runner.log_buffer.clear_output()  # the last training figures stand in a line of their own
        output = runner.log_buffer.output
        for name, sparsity in self.sparsities.items():
            backbone.sparsity = sparsity
            metrics = self._evaluation.metrics(model, images=self.images)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if key.endswith("_mAP"))
            console.print(f"epoch {runner.epoch + 1}, {name}: {shown}", markup=False)
            output.update({f"{name}/{key}": value for key, value in metrics.items()})
        runner.log_buffer.ready = True
        backbone.sparsity = before
        model.train()


@HOOKS.register_module()
class SaveCheckpoints(Hook):  # type: ignore[misc]
    """Whole checkpoints only: written to a temporary name, then renamed to `epoch_<n>.pth`.

    Args:
        interval: epochs between checkpoints; the last epoch is always saved.
        keep: how many of the newest stay; all of them if 0 or less.
    """

    def __init__(self, interval: int = 1, keep: int = 2) -> None:
        self.interval, self.keep = interval, keep

    def after_train_epoch(self, runner: Any) -> None:
        epoch = runner.epoch + 1
        if runner.rank != 0 or (epoch % self.interval and epoch != runner.max_epochs):
            return
        model = getattr(runner.model, "module", runner.model)
        content = {
            "meta": {"epoch": epoch, "iter": runner.iter, "CLASSES": list(model.CLASSES)},
            "state_dict": weights_to_cpu(model.state_dict()),
            "optimizer": runner.optimizer.state_dict(),
        }
        folder = Path(runner.work_dir)
        write_checkpoint(content, folder / f"epoch_{epoch}.pth")
        if self.keep > 0:
            for old in checkpoints(folder)[: -self.keep]:
                old.unlink()


@HOOKS.register_module()
class SeedEpochs(Hook):  # type: ignore[misc]
    """Seeds every epoch anew from seed, epoch and rank, so that a resumed run repeats an uninterrupted one.

    What worker processes of a data loader draw is theirs; `seeding.SeededImages` seeds every image.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Any) -> None:
        rank, ranks = get_dist_info()
        seed = self.seed * 1_000_003 + runner.epoch * ranks + rank
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # mmdet's samplers and transforms draw from it


class ShowProgress(Hook):  # type: ignore[misc]
    """One progress bar over all iterations, with the loss.

    Args:
        title: of the bar.
        stack: closes the bar, also when training fails or is interrupted.
    """

    def __init__(self, title: str, stack: ExitStack) -> None:
        self.title = title
        self._stack = stack
        self._step: Step | None = None
        self._shown, self._loss = 0.0, ""

    def before_train_epoch(self, runner: Any) -> None:
        if self._step is None:  # only now is the number of iterations known
            self._step = self._stack.enter_context(progress(self.title, runner.max_iters))
            if runner.iter:
                self._step(runner.iter)

    def after_train_iter(self, runner: Any) -> None:
        assert self._step is not None
        # Reading the loss waits for the device, and the other ranks for this one: only who shows it does.
        if runner.rank == 0 and time.monotonic() - self._shown > SHOWN_EVERY_S:
            self._shown = time.monotonic()
            self._loss = f"loss {float(runner.outputs['loss'].detach()):.3f}"
        self._step(1, self._loss)
