"""Training by mmcv's runner: dense, Sparsity-Aware Adaptation, or finetuning at one sparsity; on one device or under torchrun."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import build_optimizer, build_runner
from mmcv.utils import Config
from mmdet.datasets import build_dataloader, build_dataset
from torch import nn

from sparsevit.console import console, progress
from sparsevit.errors import UserError
from sparsevit.openmmlab.config import build_model, load_weights
from sparsevit.openmmlab.evaluation import DetectorEvaluation
from sparsevit.openmmlab.hooks import (
    EvaluateSparsities,
    SaveCheckpoints,
    SeedEpochs,
    ShowProgress,
    backbone_of,
    checkpoints,
)
from sparsevit.openmmlab.parallel import ManyRanks, OneDevice, init_ranks, own_device
from sparsevit.sparsity import Sparsity


def train(config: Any, work_dir: Path, *, seed: int = 0, device: str | None = None, title: str = "training") -> Path:
    """Train what a config describes and return the last checkpoint.

    Goes on from the newest checkpoint in `work_dir`. The initial weights are `load_from`'s.

    Raises:
        UserError: if the folder cannot be written, or the config names data or weights that are not there.
    """
    rank, ranks = init_ranks()
    place = own_device(device)
    if place.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        Config(config._cfg_dict).dump(str(work_dir / "config.py"))
    except OSError as error:
        raise UserError(f"cannot write to the work folder {work_dir}: {error.strerror or error}") from error
    torch.manual_seed(seed)
    model = _initial_model(config)
    dataset = build_dataset(config.data.train)
    model.CLASSES = dataset.CLASSES
    loader = _loader(dataset, config, rank, ranks, place, seed)
    autocast = getattr(torch, config.autocast) if config.get("autocast") and place.type == "cuda" else None
    wrapped: nn.Module = (ManyRanks if ranks > 1 else OneDevice)(model, place, autocast)
    runner = build_runner(
        config.runner,
        default_args=dict(
            model=wrapped,
            optimizer=build_optimizer(wrapped, config.optimizer),
            work_dir=str(work_dir),
            logger=_file_logger(work_dir, rank),
            meta={},
        ),
    )
    runner.timestamp = "training"
    runner.register_training_hooks(
        config.lr_config, config.optimizer_config, None, config.get("log_config"), custom_hooks_config=config.get("custom_hooks")
    )
    runner.register_hook(SeedEpochs(seed))
    runner.register_hook(ShowProgress(title))
    saving = config.get("checkpoint_config") or {}
    runner.register_hook(SaveCheckpoints(saving.get("interval", 1), saving.get("max_keep_ckpts", 2)), priority="LOW")
    evaluation = config.get("evaluate_sparsities")
    if evaluation:
        runner.register_hook(EvaluateSparsities(**{"dataset": config.data.val, **evaluation}), priority="LOW")
    done = checkpoints(work_dir)
    if done:
        console.print(f"resuming from {done[-1]}")
        runner.resume(str(done[-1]), map_location="cpu")
    runner.run([loader], [("train", 1)])
    if ranks > 1:
        torch.distributed.barrier()  # the last checkpoint is written
    return checkpoints(work_dir)[-1]


def with_adaptation(config: Any, seed: int) -> Any:
    """The config with Sparsity-Aware Adaptation among its hooks, where it is not there already."""
    hooks = list(config.get("custom_hooks") or [])
    if not any(hook["type"] == "SparsityAdaptation" for hook in hooks):
        config.custom_hooks = [*hooks, dict(type="SparsityAdaptation", seed=seed)]
    return config


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
) -> list[tuple[Sparsity, dict[str, float]]]:
    """COCO metrics under each sparsity (the config's own if none is given), on the config's test images.

    Raises:
        UserError: if a file is missing, or weights or a sparsity do not fit the model.
    """
    place = own_device(device)
    model = build_model(config, checkpoint)
    backbone = backbone_of(model)
    wanted = [Sparsity.of(text, backbone.depths) for text in sparsities] if sparsities else [backbone.sparsity]
    evaluation = DetectorEvaluation.of_dataset(
        config.data.get("test") or config.data.val, batch=8 if place.type == "cuda" else 1
    )
    model.to(place)
    count = len(evaluation) if images is None else min(images, len(evaluation))
    figures = []
    for sparsity in wanted:
        backbone.sparsity = sparsity
        with progress(f"evaluating {sparsity}", count) as step:
            figures.append((sparsity, evaluation.metrics(model, images=images, step=step)))
    return figures


def _initial_model(config: Any) -> nn.Module:
    start = config.get("load_from")
    model = build_model(config)
    if start:
        load_weights(model, start)
    return model


def _loader(dataset: Any, config: Any, rank: int, ranks: int, device: torch.device, seed: int) -> Any:
    batch = config.data.samples_per_gpu
    if hasattr(dataset, "loader"):
        return dataset.loader(batch, rank, ranks, device)
    return build_dataloader(
        dataset,
        batch,
        config.data.get("workers_per_gpu", 2),
        dist=ranks > 1,
        shuffle=True,
        seed=seed,
        persistent_workers=config.data.get("workers_per_gpu", 2) > 0,
    )


def _file_logger(work_dir: Path, rank: int) -> logging.Logger:
    """The runner's log goes to a file; the terminal has the progress bar."""
    logger = logging.getLogger(f"sparsevit.training.{work_dir}")
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    if rank == 0 and not logger.handlers:
        handler = logging.FileHandler(work_dir / "training.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    return logger
