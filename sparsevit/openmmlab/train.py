"""Training by mmcv's runner: dense, Sparsity-Aware Adaptation, or finetuning at one sparsity.

On one device, or on all ranks under torchrun.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import DistSamplerSeedHook, build_optimizer, build_runner
from mmcv.utils import Config
from torch import nn

from sparsevit.console import console, progress
from sparsevit.errors import UserError, first_line
from sparsevit.folders import check_folder
from sparsevit.openmmlab.checkpoints import checkpoints, newest_checkpoint
from sparsevit.openmmlab.coco_loader import device_loader
from sparsevit.openmmlab.config import build_model
from sparsevit.openmmlab.data_checks import check_test_data, check_training_data
from sparsevit.openmmlab.datasets import training_dataset
from sparsevit.openmmlab.evaluation import DetectorEvaluation
from sparsevit.openmmlab.fast_heads import with_fast_heads
from sparsevit.openmmlab.hooks import (
    EvaluateSparsities,
    SaveCheckpoints,
    SeedEpochs,
    ShowProgress,
    backbone_of,
)
from sparsevit.openmmlab.judging import AUTO, BATCH, Judge, precision_on
from sparsevit.openmmlab.one_voice import one_voice
from sparsevit.openmmlab.parallel import ManyRanks, OneDevice, init_ranks, own_device
from sparsevit.openmmlab.runner import resume
from sparsevit.openmmlab.seeding import seeded_loader
from sparsevit.openmmlab.step import LogFigures, OptimizerStep
from sparsevit.openmmlab.training_forms import by_epochs, scale_rate, training_form
from sparsevit.sparsity import Sparsity


def train(config: Any, work_dir: Path, *, seed: int = 0, device: str | None = None, title: str = "training") -> Path:
    """Train what a config describes and return the last checkpoint.

    Goes on from the newest checkpoint in `work_dir`, or else from `resume_from`. The initial weights are `load_from`'s.

    Args:
        seed: of initialisation, data order and sampling.
        device: `cpu`, `cuda:N`, or None for a GPU if there is one.
        title: of the progress bar.

    Raises:
        UserError: if the folder cannot be written, or the config lacks something or names data or weights that are not
            there. Nothing is written then.
    """
    config, notes = training_form(config, seed)
    _check(config)
    check_folder(work_dir, "--work-dir")
    rank, ranks = init_ranks()
    scale_rate(config, ranks)
    place = own_device(device)
    if place.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(seed)
    with one_voice():
        resumed = newest_checkpoint(work_dir) or config.get("resume_from")
        model = build_model(with_fast_heads(config), resumed or config.get("load_from") or None, backbone_alone=True)
        dataset = training_dataset(config.data.train)
        check_training_data(dataset, model)
        model.CLASSES = dataset.CLASSES
        loader = _loader(dataset, config, rank, ranks, place, seed)
    counted, more = by_epochs(config, len(loader))
    for note in [*notes, *more]:
        console.print(f"note: {note}", markup=False)
    autocast = getattr(torch, config.autocast) if config.get("autocast") and place.type == "cuda" else None
    if autocast not in (None, torch.float32) and find_spec("triton"):
        from sparsevit.engine.training_attention import train_with_kernels

        train_with_kernels(backbone_of(model))
    wrapped: nn.Module = (ManyRanks if ranks > 1 else OneDevice)(model, place, autocast)
    with ExitStack() as stack:
        with one_voice():
            runner = _runner(counted, wrapped, seed)
            if resumed:
                console.print(f"resuming from {resumed}", markup=False)
                resume(runner, Path(resumed))
        runner.register_hook(ShowProgress(title, stack))
        work_dir.mkdir(parents=True, exist_ok=True)
        runner.work_dir = str(work_dir)
        if rank == 0:
            _write_config(config, work_dir / "config.py")
            stack.enter_context(_logging_to(work_dir / "training.log", runner.logger))
        runner.run([loader], [("train", 1)])
    if ranks > 1:
        torch.distributed.barrier()  # the last checkpoint is written
    return checkpoints(work_dir)[-1]


def _runner(config: Any, model: nn.Module, seed: int) -> Any:
    """mmcv's runner with all hooks but the progress bar, still without a folder to write to."""
    # Not a registered logger: its handlers end with the run, and the terminal has the progress bar.
    logger = logging.Logger("sparsevit.training", logging.INFO)
    logger.addHandler(logging.NullHandler())
    saving = config.get("checkpoint_config") or {}
    try:
        optimizer = build_optimizer(model, _fused(config.optimizer, next(model.parameters()).device))
        runner = build_runner(
            config.runner, default_args=dict(model=model, optimizer=optimizer, logger=logger, meta={})
        )
        runner.register_training_hooks(
            config.get("lr_config"),
            _stepping(config.get("optimizer_config") or {}),
            None,
            config.get("log_config"),
            config.get("momentum_config"),
            custom_hooks_config=config.get("custom_hooks"),
        )
        runner.register_hook(LogFigures(config.get("log_config")), priority="LOW")
        runner.register_hook(DistSamplerSeedHook())
        runner.register_hook(SeedEpochs(seed))
        runner.register_hook(
            SaveCheckpoints(saving.get("interval", 1), saving.get("max_keep_ckpts", 2)), priority="LOW"
        )
        if config.get("evaluate_sparsities"):
            validation = EvaluateSparsities(**{"dataset": config.data.get("val"), **config.evaluate_sparsities})
            validation.open(getattr(model, "module", model))
            runner.register_hook(validation, priority="LOW")
    except UserError:
        raise
    except Exception as error:  # whatever mmcv's and torch's classes make of a wrong argument
        raise UserError(f"cannot train what the config describes: {first_line(error)}") from error
    runner.timestamp = "training"  # names mmcv's log, training.log.json; a resumed run goes on with the same
    return runner


def _fused(optimizer: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The optimiser's config, one kernel for all parameters where PyTorch has that."""
    fused = {"fused": True} if device.type == "cuda" and optimizer.get("type") in ("AdamW", "Adam", "SGD") else {}
    return {**fused, **optimizer}


def _stepping(optimizer_config: Mapping[str, Any]) -> Any:
    """The hook that steps the optimiser; mmcv's own for a type that is named, or for more than clipping."""
    return OptimizerStep(**optimizer_config) if optimizer_config.keys() <= {"grad_clip"} else optimizer_config


def judge(config: Any, checkpoint: str | Path | None, *, device: str | None, images: int | None) -> dict[str, float]:
    """COCO metrics of a config's own sparsity with these weights, on its test images."""
    return judge_all(config, checkpoint, None, device=device, images=images)[0][1]


def judge_all(
    config: Any,
    checkpoint: str | Path | None,
    sparsities: Sequence[str] | None,
    *,
    device: str | None,
    images: int | None,
    precision: str = AUTO,
    masks: bool = True,
) -> list[tuple[Sparsity, dict[str, float]]]:
    """COCO metrics under each sparsity (the config's own if none is given), on the config's test images.

    Args:
        precision: see `judging.precision_on`.
        masks: whether masks are judged too, if the model has any.

    Raises:
        UserError: if a file is missing, or weights or a sparsity do not fit the model.
    """
    place = own_device(device)
    dtype = precision_on(place, precision)
    model = build_model(config, checkpoint)
    backbone = backbone_of(model)
    wanted = [Sparsity.of(text, backbone.depths) for text in sparsities] if sparsities else [backbone.sparsity]
    evaluation = DetectorEvaluation.of_dataset(
        config.data.get("test") or config.data.val, batch=BATCH.get(place.type, 1), on_device=True
    )
    check_test_data(
        evaluation.dataset, model, images=images, key="data.test" if config.data.get("test") else "data.val"
    )
    judge = Judge(model.to(place), evaluation, dtype)
    count = len(evaluation) if images is None else min(images, len(evaluation))
    figures = []
    for sparsity in wanted:
        with progress(f"evaluating {sparsity}", count) as step:
            figures.append((sparsity, judge.metrics(sparsity, images=images, step=step, masks=masks)))
    return figures


def _check(config: Any) -> None:
    """What training needs of a config, found missing before anything is built or written."""
    for key in ("data", "optimizer", "runner"):
        if not isinstance(config.get(key), Mapping):
            raise UserError(f"the config has no table {key!r}, which training needs")
    if "train" not in config.data or "samples_per_gpu" not in config.data:
        raise UserError("the config's table 'data' needs train and samples_per_gpu for training")


def _write_config(config: Any, path: Path) -> None:
    temporary = path.with_name(".config.tmp.py")
    Config(config._cfg_dict).dump(str(temporary))
    os.replace(temporary, path)


def _loader(dataset: Any, config: Any, rank: int, ranks: int, device: torch.device, seed: int) -> Any:
    batch = config.data.samples_per_gpu
    if hasattr(dataset, "loader"):
        return dataset.loader(batch, rank, ranks, device)
    workers = config.data.get("workers_per_gpu", 2)
    if config.data.get("device_pipeline", True):
        cache = config.data.get("image_cache", True)
        loader = device_loader(dataset, batch, workers, rank, ranks, device, seed, cache)
        if loader is not None:
            return loader
    return seeded_loader(dataset, batch, workers, rank, ranks, seed)


@contextmanager
def _logging_to(path: Path, logger: logging.Logger) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
