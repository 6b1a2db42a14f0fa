from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Any

import pytest
import torch

from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.latency.timing import ANCHOR_EVERY, MIN_ROUNDS, PROGRESS, measure
from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity, SparsitySpace

TARGET = Target("cpu", 1, size=(64, 96), batch=2)
SPACE = SparsitySpace()
SPARSITIES = [SPACE.uniform(value) for value in ("0.3", "0.6", "0.8")]


def cost(sparsity: Sparsity) -> float:
    """100 ms dense, down to 20 ms."""
    return 100 * (1 - float(sum(sparsity.flat)) / len(sparsity.flat))


def test_a_steady_machine_tells_exact_latencies(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    timings = measure(backbone_type(clock, cost), TARGET, [SPACE.dense, *SPARSITIES], clock=clock)
    assert [timing.median_ms for timing in timings] == pytest.approx([100, 70, 40, 20])
    assert all(timing.low_ms == pytest.approx(timing.high_ms) for timing in timings)
    assert all(timing.samples >= MIN_ROUNDS for timing in timings)


@pytest.mark.parametrize("seed", range(3))
def test_the_anchor_corrects_a_machine_that_slows_down(clock_type: Any, backbone_type: Any, seed: int) -> None:
    """By the end the clock runs at a third of its pace, yet ratios to dense stay what they are."""
    clock = clock_type(pace=lambda now: 1 + now / 15)
    timings = measure(
        backbone_type(clock, cost), TARGET, [SPACE.dense, *SPARSITIES], clock=clock, budget_s=30, precision=0, seed=seed
    )
    assert [timing.median_ms / timings[0].median_ms for timing in timings] == pytest.approx(
        [1, 0.7, 0.4, 0.2], rel=0.01
    )
    assert timings[0].median_ms > 110


def test_stops_when_precise_and_else_when_the_time_is_over(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    measure(backbone_type(clock, cost), TARGET, SPARSITIES, clock=clock, budget_s=1e4)
    assert clock() < 20
    clock = clock_type()
    many = measure(backbone_type(clock, cost), TARGET, SPARSITIES, clock=clock, budget_s=30, precision=-1)
    assert 30 <= clock() < 31
    assert many[0].samples > 50
    clock = clock_type()
    few = measure(backbone_type(clock, cost), TARGET, SPARSITIES, clock=clock, budget_s=1e-3, precision=-1)
    assert [timing.samples for timing in few] == [MIN_ROUNDS] * 3


def test_same_sparsities_are_measured_once(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    backbone = backbone_type(clock, cost)
    timings = measure(backbone, TARGET, [SPARSITIES[0]] * 2 + [SPACE.dense] * 2, clock=clock)
    assert timings[0] is timings[1]
    assert timings[2] is timings[3]
    assert {seen[0] for seen in backbone.seen} == {str(SPARSITIES[0]), str(SPACE.dense)}


def test_orders_are_shuffled_by_the_seed_around_a_dense_anchor(clock_type: Any, backbone_type: Any) -> None:
    def order(seed: int) -> list[str]:
        clock = clock_type()
        backbone = backbone_type(clock, cost)
        measure(backbone, TARGET, list(islice(SPACE, 1, 40, 3)), clock=clock, seed=seed)
        return [seen[0] for seen in backbone.seen]

    assert order(0) == order(0)
    assert order(0) != order(1)
    dense = [place for place, text in enumerate(order(0)) if text == str(SPACE.dense)]
    gaps = {later - earlier for earlier, later in pairwise(dense[1:])}
    assert max(gaps) == ANCHOR_EVERY + 1


def test_short_calls_are_repeated(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    backbone = backbone_type(clock, lambda sparsity: cost(sparsity) / 100)
    timings = measure(backbone, TARGET, SPARSITIES, clock=clock)
    assert [timing.median_ms for timing in timings] == pytest.approx([0.7, 0.4, 0.2])
    assert len(backbone.seen) > 5 * sum(timing.samples for timing in timings)


def test_states_times_relative_to_a_dense_latency_known_before(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    timings = measure(backbone_type(clock, cost), TARGET, SPARSITIES, clock=clock, reference_ms=50)
    assert [timing.median_ms for timing in timings] == pytest.approx([35, 20, 10])


def test_the_backbone_runs_as_the_target_says_and_stays_as_it_was(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    backbone = backbone_type(clock, cost).train()
    backbone.sparsity = SPARSITIES[1]
    threads = torch.get_num_threads()
    target = Target("cpu", threads + 1, "bfloat16", 2, (64, 96))
    measure(backbone, target, SPARSITIES, clock=clock)
    assert {seen[1:] for seen in backbone.seen} == {((2, 3, 64, 96), torch.bfloat16, threads + 1, False)}
    assert torch.get_num_threads() == threads
    assert backbone.training
    assert backbone.sparsity == SPARSITIES[1]
    assert backbone.weight.dtype == torch.float32
    assert not backbone.weight.is_inference()


def test_threads_are_put_back_after_a_failure(clock_type: Any, backbone_type: Any) -> None:
    def fail(sparsity: Sparsity) -> float:
        raise RuntimeError("broken")

    threads = torch.get_num_threads()
    clock = clock_type()
    with pytest.raises(RuntimeError, match="broken"):
        measure(backbone_type(clock, fail), Target("cpu", threads + 1), SPARSITIES, clock=clock)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("budget_s", [30.0, 0.5])
def test_progress_adds_up(clock_type: Any, backbone_type: Any, budget_s: float) -> None:
    clock = clock_type()
    steps: list[int] = []
    measure(
        backbone_type(clock, cost),
        TARGET,
        SPARSITIES,
        clock=clock,
        budget_s=budget_s,
        precision=-1,
        step=lambda advance=1, note="": steps.append(advance),
    )
    assert sum(steps) == PROGRESS
    assert len(steps) > 10
    assert min(steps) > 0


@pytest.mark.parametrize("budget_s", [0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(clock_type: Any, backbone_type: Any, budget_s: float) -> None:
    clock = clock_type()
    with pytest.raises(UserError, match="seconds above 0"):
        measure(backbone_type(clock, cost), TARGET, SPARSITIES, budget_s=budget_s, clock=clock)


def test_a_sparsity_of_another_backbone_is_refused(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    with pytest.raises(UserError, match="does not fit"):
        measure(backbone_type(clock, cost), TARGET, [Sparsity.parse("0/0.1")], clock=clock)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_is_timed_by_its_own_events(engine: str, dtype: str) -> None:
    backbone = SparseSwin(embed_dims=32, num_heads=(1, 2, 4, 8))
    target = Target("cuda:0", dtype=dtype, batch=2, size=(224, 230), engine=engine)
    timings = measure(backbone, target, [SPACE.dense, *SPARSITIES], budget_s=2)
    assert all(0 < timing.low_ms <= timing.median_ms <= timing.high_ms < 1000 for timing in timings)
    assert next(backbone.parameters()).device.type == "cpu"
