from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.latency.timing import ANCHOR_EVERY, MIN_ROUNDS, PROGRESS, measure, survey
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


def test_states_times_at_the_pace_of_latencies_known_before(clock_type: Any, backbone_type: Any) -> None:
    clock, dense = clock_type(), SPACE.dense
    timings = measure(backbone_type(clock, cost), TARGET, SPARSITIES, clock=clock, known={dense: 50})
    assert [timing.median_ms for timing in timings] == pytest.approx([35, 20, 10])
    others = dict(zip(SPARSITIES[:2], (35, 20), strict=True))
    clock = clock_type()
    backbone = backbone_type(clock, lambda sparsity: cost(sparsity) * (1.01 if sparsity == dense else 1))
    (timing,) = measure(backbone, TARGET, SPARSITIES[2:], clock=clock, known={dense: 50} | others)
    assert timing.median_ms == pytest.approx(10)  # that the dense one alone is slower now says nothing of others


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


def told(clock: Any, backbone: Any, **settings: Any) -> list[str]:
    """Notes of a run, but for what other programs do to this very machine."""
    lines: list[str] = []
    measure(backbone, TARGET, SPARSITIES, clock=clock, note=lines.append, **settings)
    return [line for line in lines if not line.startswith("other programs")]


def test_notes_say_what_may_have_spoiled_the_timings(clock_type: Any, backbone_type: Any) -> None:
    steady = clock_type()
    assert told(steady, backbone_type(steady, cost)) == []
    slowing = clock_type(pace=lambda now: 1 + now / 15)
    (line,) = told(slowing, backbone_type(slowing, cost), budget_s=30, precision=0.2)
    assert re.fullmatch(r"the machine's pace wandered by \d+% meanwhile; this is corrected by the dense anchor", line)
    rng = random.Random(0)
    noisy = clock_type()
    (line,) = told(
        noisy, backbone_type(noisy, lambda sparsity: cost(sparsity) * rng.uniform(0.98, 1.02)), precision=0.0001
    )
    assert re.fullmatch(r"3 of 3 intervals are wider than ±0.0%, up to ±\d.\d%", line)


def test_what_happens_only_once_is_not_counted(clock_type: Any, backbone_type: Any) -> None:
    """Compiling takes 100 s for each configuration here, of a budget of 5 s."""
    seen: set[str] = set()

    def compiling(sparsity: Sparsity) -> float:
        first = str(sparsity) not in seen
        seen.add(str(sparsity))
        return cost(sparsity) + (100_000 if first else 0)

    clock = clock_type()
    timings = measure(backbone_type(clock, compiling), TARGET, SPARSITIES, clock=clock, budget_s=5, precision=-1)
    assert [timing.median_ms for timing in timings] == pytest.approx([70, 40, 20])
    assert all(timing.samples > 5 for timing in timings)


def test_a_slow_start_is_waited_for(clock_type: Any, backbone_type: Any) -> None:
    """For 1.5 s, from its first call on, the machine is up to four times slower."""
    clock = clock_type(pace=lambda now: max(1.0, 4 - 2 * now))
    backbone = backbone_type(clock, lambda sparsity: cost(sparsity) / 10)
    measure(backbone, TARGET, SPARSITIES, clock=clock, budget_s=60, precision=0.5)
    dense = str(SPACE.dense)
    warm_up = next(place for place, seen in enumerate(backbone.seen[4:]) if seen[0] != dense)
    assert warm_up > 60


class FakeDetector(nn.Module):
    """Takes images whose sides are multiples of some number, and finds as many objects as it has images."""

    def __init__(self, backbone: nn.Module, multiple: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.multiple = multiple
        self.depths, self.window_size, self.patch_size = backbone.depths, 7, 4

    def example_images(self, batch: int, size: tuple[int, int]) -> Tensor:
        return torch.ones(batch, 3, *size)

    def detect(self, images: Tensor, features: Any) -> int:
        if any(side % self.multiple for side in images.shape[-2:]):
            raise RuntimeError("The size of tensor a (15) must match the size of tensor b (14)")
        self.backbone.clock.pass_ms(30)
        return len(images)


def test_a_detector_is_timed_with_all_that_follows_its_backbone(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    target = replace(TARGET, scope="detector")
    found = survey(FakeDetector(backbone_type(clock, cost), 1), target, [SPACE.dense, *SPARSITIES], clock=clock)
    assert [timing.median_ms for timing in found.timings] == pytest.approx([130, 100, 70, 50])
    assert found.notes[0] == "timed with 2 objects found in 2 image(s); more take longer"


@pytest.mark.parametrize(("size", "works"), [((64, 100), "64x96"), ((47, 90), "32x96")])
def test_a_size_that_a_detector_cannot_take_names_one_that_it_can(
    clock_type: Any, backbone_type: Any, size: tuple[int, int], works: str
) -> None:
    clock = clock_type()
    detector = FakeDetector(backbone_type(clock, cost), 32)
    target = Target("cpu", 1, size=size, scope="detector")
    with pytest.raises(UserError, match=rf"^the detector cannot take images of {size[0]}x{size[1]}: {works} works$"):
        measure(detector, target, SPARSITIES, clock=clock)
    assert measure(detector, replace(target, size=(64, 96)), SPARSITIES, clock=clock)


def test_a_detector_that_takes_nothing_is_broken_for_another_reason(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    detector = FakeDetector(backbone_type(clock, cost), 1000)
    with pytest.raises(RuntimeError, match="must match the size"):
        measure(detector, Target("cpu", 1, size=(50, 50), scope="detector"), SPARSITIES, clock=clock)


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
