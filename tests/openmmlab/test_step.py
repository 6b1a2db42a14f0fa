"""A training step without waits computes and logs what mmdet's and mmcv's own does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmcv.runner import OptimizerHook
from mmcv.runner.log_buffer import LogBuffer
from mmdet.models.detectors import BaseDetector

from sparsevit.openmmlab.step import LogFigures, OptimizerStep, joined_groups, total_loss


def losses() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "loss_cls": torch.rand(3, requires_grad=True),
        "loss_levels": [torch.rand(2, requires_grad=True), torch.rand(5, requires_grad=True)],
        "acc": torch.rand(1),
    }


def test_losses_add_up_as_in_mmdet() -> None:
    given = losses()
    loss, figures = total_loss(given)
    expected, log = BaseDetector._parse_losses(None, given)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(dict(log))
    loss.backward()
    assert all(each.grad is not None for each in (given["loss_cls"], *given["loss_levels"]))
    assert not any(value.requires_grad for value in figures.values())


def stepped(hook: Any, clip: bool) -> tuple[list[torch.Tensor], dict[str, Any]]:
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 2)
    runner = SimpleNamespace(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.1), log_buffer=LogBuffer()
    )
    for _ in range(3):
        loss = model(torch.rand(5, 4)).square().mean()
        runner.outputs = {"loss": loss, "figures": {}, "num_samples": 5}
        hook.after_train_iter(runner)
    logged = runner.outputs["figures"].get("grad_norm")
    if logged is None and clip:
        logged = runner.log_buffer.val_history["grad_norm"][-1]
    return [each.detach().clone() for each in model.parameters()], {"grad_norm": logged}


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.01}])
def test_an_optimizer_step_is_mmcvs(clip: dict[str, float] | None) -> None:
    ours, own_log = stepped(OptimizerStep(clip), clip is not None)
    theirs, log = stepped(OptimizerHook(clip), clip is not None)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
    if clip:
        assert float(own_log["grad_norm"]) == pytest.approx(log["grad_norm"])


def test_what_else_mmcvs_hook_can_is_left_to_it() -> None:
    from sparsevit.openmmlab.train import _stepping

    assert isinstance(_stepping({}), OptimizerStep)
    assert isinstance(_stepping({"grad_clip": {"max_norm": 1}}), OptimizerStep)
    for given in ({"grad_clip": None, "detect_anomalous_params": True}, {"type": "GradientCumulativeOptimizerHook"}):
        assert _stepping(given) is given


def grouped(kind: type[torch.optim.Optimizer], **more: Any) -> torch.optim.Optimizer:
    """An optimiser with a group for every parameter, as mmcv makes it of `paramwise_cfg`."""
    torch.manual_seed(2)
    groups = [
        {"params": [torch.nn.Parameter(torch.rand(3))], "lr": 0.1 / (1 + i % 2), "weight_decay": 0.05 * (i > 2)}
        for i in range(6)
    ]
    return kind(groups, **more)


@pytest.mark.parametrize(
    ("kind", "more"), [(torch.optim.AdamW, {"fused": True}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})]
)
def test_a_step_of_joined_groups_is_that_of_the_single_ones(
    kind: type[torch.optim.Optimizer], more: dict[str, Any]
) -> None:
    single, joined = grouped(kind, **more), grouped(kind, **more)
    groups = joined.param_groups
    sizes = []
    joined.register_step_pre_hook(lambda optimizer, *_: sizes.append(len(optimizer.param_groups)))
    for step in range(4):
        for optimizer in (single, joined):
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] *= 0.5  # a schedule
                group["params"][0].grad = torch.rand(3)
        single.step()
        with joined_groups(joined):
            joined.step()
    assert sizes == [4] * 4
    assert joined.param_groups is groups
    mine, other = joined.state_dict(), single.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    for number, state in other["state"].items():
        for name, value in state.items():
            assert torch.equal(mine["state"][number][name], value)
    for group, expected in zip(groups, single.param_groups, strict=True):
        assert torch.equal(group["params"][0], expected["params"][0])


def test_optimisers_that_may_keep_things_in_a_group_step_group_by_group() -> None:
    optimizer = grouped(torch.optim.NAdam)
    with joined_groups(optimizer):
        assert len(optimizer.param_groups) == 6


class Runner:
    """What the hook asks of mmcv's runner, in an epoch of five iterations."""

    def __init__(self) -> None:
        self.log_buffer = LogBuffer()
        self.data_loader = range(5)
        self.inner_iter = 0


def test_figures_reach_the_log_when_it_is_written_and_at_the_end_of_an_epoch() -> None:
    runner, hook = Runner(), LogFigures({"interval": 2, "hooks": [{"type": "TextLoggerHook"}]})
    seen = []
    for iteration in range(5):
        runner.inner_iter = iteration
        runner.outputs = {"figures": {"loss": torch.tensor(float(iteration))}, "num_samples": 2}  # type: ignore[attr-defined]
        hook.after_train_iter(runner)
        seen.append(list(runner.log_buffer.val_history.get("loss", [])))
    assert seen == [[], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]]
    runner.log_buffer.average(2)
    assert runner.log_buffer.output["loss"] == 3.5


@pytest.mark.parametrize(
    ("config", "interval"),
    [
        (None, 10),
        ({"interval": 20, "hooks": []}, 20),
        ({"interval": 20, "hooks": [{"type": "TextLoggerHook"}, {"type": "TensorboardLoggerHook", "interval": 8}]}, 4),
    ],
)
def test_figures_are_there_for_every_logger(config: dict[str, Any] | None, interval: int) -> None:
    assert LogFigures(config).interval == interval
