"""A training iteration that does not wait for the device: losses are read when they are logged, not when made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from math import gcd
from operator import itemgetter
from typing import Any

import torch
from mmcv.runner import Hook
from torch import Tensor
from torch.nn.utils import clip_grad_norm_


def total_loss(losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of a detector's losses, and what is to be logged of them, still on the device.

    As mmdet's `BaseDetector._parse_losses`: means of tensors, sums of the means in lists; names with `loss` count.
    """
    values = {
        name: torch.stack([each.mean() for each in value]).sum() if isinstance(value, list) else value.mean()
        for name, value in losses.items()
    }
    loss = torch.stack([value.float() for name, value in values.items() if "loss" in name]).sum()
    return loss, {name: value.detach() for name, value in {**values, "loss": loss}.items()}


class OptimizerStep(Hook):  # type: ignore[misc]  # mmcv is untyped
    """mmcv's `OptimizerHook` without its wait for the gradients' norm.

    Args:
        grad_clip: arguments of `torch.nn.utils.clip_grad_norm_`; None: gradients are not clipped.
    """

    def __init__(self, grad_clip: Mapping[str, Any] | None = None) -> None:
        self.grad_clip = grad_clip

    def after_train_iter(self, runner: Any) -> None:
        runner.optimizer.zero_grad(set_to_none=True)
        runner.outputs["loss"].backward()
        if self.grad_clip is not None:
            trained = [parameter for parameter in runner.model.parameters() if parameter.grad is not None]
            runner.outputs["figures"]["grad_norm"] = clip_grad_norm_(trained, **self.grad_clip)
        with joined_groups(runner.optimizer):
            runner.optimizer.step()


@contextmanager
def joined_groups(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, PyTorch's common optimisers have one group for all parameters with equal settings.

    mmcv makes a group of every parameter where a config has `paramwise_cfg`, and each group costs a step of its own.
    Schedules and checkpoints keep those groups, in mmdet's order.
    """
    groups = optimizer.param_groups
    names = groups[0].keys()
    if type(optimizer) not in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD) or any(
        group.keys() != names for group in groups
    ):
        yield  # other optimisers may keep things in a group
        return
    settings_of = itemgetter(*(name for name in names if name != "params"))
    together: list[tuple[Any, dict[str, Any]]] = []
    for group in groups:  # hundreds: whatever is done here for one counts
        settings = settings_of(group)
        for known, joined in together:
            if known == settings:
                joined["params"] += group["params"]
                break
        else:
            together.append((settings, {**group, "params": list(group["params"])}))
    optimizer.param_groups = [joined for _, joined in together]
    try:
        yield
    finally:
        optimizer.param_groups = groups


class LogFigures(Hook):  # type: ignore[misc]
    """Hands the figures of all iterations since the last log line to mmcv's log, means over ranks as in mmdet.

    Args:
        log_config: the config's; says how often is logged.
    """

    def __init__(self, log_config: Mapping[str, Any] | None) -> None:
        config = log_config or {}
        every = [hook.get("interval", config.get("interval", 10)) for hook in config.get("hooks", ())]
        self.interval = reduce(gcd, every, 0) or config.get("interval", 10)
        self._kept: list[tuple[dict[str, Tensor], int]] = []

    def after_train_iter(self, runner: Any) -> None:
        self._kept.append((runner.outputs["figures"], runner.outputs["num_samples"]))
        if self.every_n_inner_iters(runner, self.interval) or self.end_of_epoch(runner):
            self._hand_over(runner)

    def _hand_over(self, runner: Any) -> None:
        together = torch.stack([value.float() for figures, _ in self._kept for value in figures.values()])
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if ranks > 1:
            torch.distributed.all_reduce(together)
            together /= ranks
        values = iter(together.tolist())
        for figures, count in self._kept:
            runner.log_buffer.update({name: next(values) for name in figures}, count)
        self._kept.clear()
