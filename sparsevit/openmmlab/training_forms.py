"""Training settings of mmdet 2.x configs, read as this package's training has them, or refused with the cure.

Nothing that a config says about training is passed over in silence if that would change the result.
"""

from __future__ import annotations

import copy
import math
from importlib.util import find_spec
from typing import Any

from mmcv.utils import ConfigDict

from sparsevit.errors import UserError
from sparsevit.openmmlab.paper_forms import adapting, own_sparsity

AUTOCAST = "bfloat16"  # for every mixed precision that a config may ask for: it needs no scaling of losses

_LOADER = {"samples_per_gpu", "workers_per_gpu", "persistent_workers", "shuffle"}
_LOGGERS = {  # hook, and the package it writes to
    "ClearMLLoggerHook": "clearml",
    "DvcliveLoggerHook": "dvclive",
    "MlflowLoggerHook": "mlflow",
    "NeptuneLoggerHook": "neptune",
    "PaviLoggerHook": "pavi",
    "SegmindLoggerHook": "segmind",
    "TensorboardLoggerHook": "tensorboard",
    "WandbLoggerHook": "wandb",
}
_JUDGED = ("bbox", "segm")


def training_form(config: Any, seed: int) -> tuple[Any, list[str]]:
    """A copy of a config in the form that `train` reads, and what a user should know about it, one line each.

    Args:
        seed: of adaptation, where the paper's `random_sample` asks for it.

    Raises:
        UserError: for a setting that training does not have; it names the setting and the cure.
    """
    config = copy.deepcopy(config)
    notes: list[str] = []
    _data(config)
    _runner(config)
    _precision(config, notes)
    _optimizer(config)
    _validation(config)
    _refuse(config)
    if adapting(config) and not adapts(config):
        with_adaptation(config, seed)
        notes.append(
            "random_sample: each training iteration draws a random sparsity; validation has the config's own, "
            f"{_sparsity_name(config)}"
        )
    return config, notes


def adapts(config: Any) -> bool:
    """Whether Sparsity-Aware Adaptation is among a config's hooks."""
    return any(hook["type"] == "SparsityAdaptation" for hook in config.get("custom_hooks") or [])


def with_adaptation(config: Any, seed: int) -> Any:
    """The config with Sparsity-Aware Adaptation among its hooks, where it is not there already."""
    if not adapts(config):
        config.custom_hooks = [*(config.get("custom_hooks") or []), dict(type="SparsityAdaptation", seed=seed)]
    return config


def by_epochs(config: Any, iterations: int) -> tuple[Any, list[str]]:
    """A copy of a config whose training is counted in epochs of so many iterations, of which the last may be cut.

    Returns:
        The config, and what a user should know, one line each.
    """
    if config.runner.type != "IterBasedRunner":
        return config, []
    config = copy.deepcopy(config)
    total: int = config.runner.max_iters
    config.runner = dict(type="EpochsToIteration", max_iters=total, max_epochs=math.ceil(total / iterations))
    if config.get("lr_config"):
        config.lr_config.setdefault("by_epoch", False)  # as mmcv has it with this runner
    for table in ("checkpoint_config", "evaluate_sparsities"):
        if config.get(table):
            config[table].interval = max(1, round(config[table].get("interval", iterations) / iterations))
    saved = (config.get("checkpoint_config") or {}).get("interval", 1)
    return config, [
        f"max_iters {total} is {total / iterations:.4g} epochs of {iterations} iterations; "
        f"checkpoints are written at the end of every {f'{saved} epochs' if saved > 1 else 'epoch'}"
    ]


def scale_rate(config: Any, ranks: int) -> None:
    """mmdet's `auto_scale_lr`, in place: the learning rate in proportion to the images of an iteration on all ranks."""
    scaling = config.get("auto_scale_lr") or {}
    if not scaling.get("enable"):
        return
    base = scaling.get("base_batch_size")
    if not isinstance(base, int) or base < 1:
        raise UserError("auto_scale_lr.enable needs auto_scale_lr.base_batch_size, the images that optimizer.lr is for")
    config.optimizer.lr *= config.data.samples_per_gpu * ranks / base


def _data(config: Any) -> None:
    """Batch and workers, wherever mmdet 2.x let them stand."""
    data = config.get("data")
    if not isinstance(data, ConfigDict):
        return
    loader = data.pop("train_dataloader", None) or {}
    unknown = sorted(loader.keys() - _LOADER)
    if unknown:
        raise UserError(
            f"data.train_dataloader.{unknown[0]} is not supported; it may hold {', '.join(sorted(_LOADER))}"
        )
    if loader.get("shuffle") is False:
        raise UserError("data.train_dataloader.shuffle is False: training shuffles its images; leave the key out")
    if "imgs_per_gpu" in data:  # before mmdet 2.0
        data.setdefault("samples_per_gpu", data.pop("imgs_per_gpu"))
    for key in ("samples_per_gpu", "workers_per_gpu"):
        if key in loader:
            data[key] = loader[key]


def _runner(config: Any) -> None:
    if config.get("runner") is None and config.get("total_epochs"):
        config.runner = dict(type="EpochBasedRunner", max_epochs=config.total_epochs)
    runner = config.get("runner")
    if not isinstance(runner, ConfigDict):
        return
    if runner.get("type") == "EpochBasedRunnerAmp":  # of Swin's own detection repository
        runner.type = "EpochBasedRunner"
    if runner.get("type") not in ("EpochBasedRunner", "IterBasedRunner"):
        raise UserError(
            f"runner.type {runner.get('type')!r} is not supported: "
            "use 'EpochBasedRunner' with max_epochs, or 'IterBasedRunner' with max_iters"
        )
    length = "max_epochs" if runner.type == "EpochBasedRunner" else "max_iters"
    if not isinstance(runner.get(length), int) or runner[length] < 1:
        raise UserError(f"runner.{length} is {runner.get(length)!r}: {runner.type} needs a whole number of at least 1")


def _precision(config: Any, notes: list[str]) -> None:
    """mmcv's fp16 and apex's as autocast."""
    asked = "fp16" if config._cfg_dict.pop("fp16", None) is not None else None
    hook = config.get("optimizer_config") or {}
    kind = hook.get("type", "")
    if "Fp16" in kind or hook.get("use_fp16"):
        asked = f"optimizer_config of type {kind}"
    if asked and not config.get("autocast"):
        config.autocast = AUTOCAST
        notes.append(f"{asked} is read as autocast = {AUTOCAST!r}, which needs no loss_scale; on the CPU it is float32")


def _optimizer(config: Any) -> None:
    """Hooks that scale losses as those that do not."""
    hook = config.get("optimizer_config")
    if not hook or "type" not in hook:
        return
    kept: dict[str, Any] = {"grad_clip": hook.get("grad_clip")}
    steps = hook.get("cumulative_iters", 1)
    if hook.type in ("Fp16OptimizerHook", "OptimizerHook"):
        pass
    elif hook.type == "DistOptimizerHook":  # of Swin's own detection repository
        steps = hook.get("update_interval", 1)
    elif hook.type not in ("GradientCumulativeOptimizerHook", "GradientCumulativeFp16OptimizerHook"):
        return  # a class that the user registered
    if steps > 1:
        kept |= {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": steps}
    config.optimizer_config = kept


def _validation(config: Any) -> None:
    """mmdet's `evaluation` as validation at the config's own sparsity; `evaluate_sparsities` goes first."""
    asked = config._cfg_dict.pop("evaluation", None)
    if not asked or "evaluate_sparsities" in config:
        return
    metrics = asked.get("metric", "bbox")
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        if metric not in _JUDGED:
            raise UserError(f"evaluation.metric {metric!r} is not among {', '.join(_JUDGED)}; write evaluation = None")
    unknown = sorted(asked.keys() - {"metric", "interval", "by_epoch", "gpu_collect", "classwise"})
    if unknown:
        raise UserError(
            f"evaluation.{unknown[0]} is not supported: leave it out; checkpoint_config.max_keep_ckpts=-1 keeps all "
            "checkpoints, and sparsevit evaluate judges them"
        )
    split = config.data.get("val") if isinstance(config.get("data"), ConfigDict) else None
    if not isinstance(split, ConfigDict):
        raise UserError("the config has a table 'evaluation', but no data.val to judge on; write evaluation = None")
    loader = config.data.get("val_dataloader") or {}
    ratios = config.model.backbone.get("pruning_ratios")
    config.evaluate_sparsities = dict(
        interval=asked.get("interval", 1),
        batch=loader.get("samples_per_gpu", split.get("samples_per_gpu", 1)),
        sparsities={_sparsity_name(config): ratios},
    )


def _refuse(config: Any) -> None:
    """Settings that would be passed over."""
    flow = config.get("workflow")
    if flow and [phase for phase, _ in flow] != ["train"]:
        raise UserError(
            f"workflow {[tuple(each) for each in flow]} is not supported: write workflow = [('train', 1)]; "
            "evaluation = dict(interval=1, metric='bbox') validates after each epoch"
        )
    gpus = config.get("gpu_ids")
    if gpus is not None and len(gpus) > 1:
        raise UserError(
            f"gpu_ids names {len(gpus)} GPUs: leave it out and start with "
            f"torchrun --nproc_per_node {len(gpus)} -m sparsevit …"
        )
    if (config.get("checkpoint_config") or {}).get("by_epoch") is False and config.runner.type != "IterBasedRunner":
        raise UserError(
            "checkpoint_config.by_epoch is False, but training saves at the end of epochs: "
            "set checkpoint_config = dict(interval=1)"
        )
    for hook in (config.get("log_config") or {}).get("hooks") or []:
        package = _LOGGERS.get(hook.get("type"))
        if package and find_spec(package) is None:
            raise UserError(
                f"{hook['type']} in log_config.hooks needs the package {package}: pip install {package}, "
                "or take the hook out"
            )


def _sparsity_name(config: Any) -> str:
    own = own_sparsity(config)
    return "dense" if own.is_dense else str(own)
