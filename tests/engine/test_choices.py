"""What is compiled at first covers what any sparsity needs later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparsevit.engine import choices
from sparsevit.engine.choices import choose, to_compile
from sparsevit.engine.plan import Plan, Shape, make_plan
from sparsevit.engine.weights import BackboneWeights, prepare
from sparsevit.model import SparseSwin

Make = Callable[..., SparseSwin]
CPU = torch.device("cpu")
SWIN_T: dict[str, Any] = {"embed_dims": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}


@pytest.fixture(scope="module")
def weights(make: Make) -> BackboneWeights:
    return prepare(make(**SWIN_T), torch.bfloat16)


def plan_of(weights: BackboneWeights, batch: int, size: tuple[int, int]) -> Plan:
    return make_plan(Shape(batch, size, 4, 7), weights, torch.bfloat16, CPU)


@pytest.mark.parametrize(("batch", "size"), [(4, (672, 672)), (16, (320, 320)), (1, (480, 701)), (3, (28, 28))])
def test_every_count_of_windows_runs_what_was_compiled(
    weights: BackboneWeights, batch: int, size: tuple[int, int]
) -> None:
    plan = plan_of(weights, batch, size)
    passes = to_compile(plan, weights)
    for number, (stage, of_stage) in enumerate(zip(plan.stages, weights.stages, strict=True)):
        sparse = {count for each in passes for count in each[number] if count < stage.windows}
        x, block, counts = stage.x, of_stage.blocks[0], range(1, stage.windows)
        ready, needed = (
            {choose(x, block, batch * count * 49, batch * count).compiled for count in some}
            for some in (sparse, counts)
        )
        assert needed <= ready
        assert all(1 <= count <= stage.windows for each in passes for count in each[number])
        assert all(len(each[number]) == (len(of_stage.blocks) + 1) // 2 for each in passes)


def test_passes_are_dense_sparse_and_sparse_after_a_dense_layer(weights: BackboneWeights) -> None:
    """Whoever writes a stage's first rows is compiled with magnitudes and without, and ranking anew is."""
    plan = plan_of(weights, 4, (672, 672))
    first, *sparse, last = to_compile(plan, weights)
    assert first == [(576,), (144,), (36, 36, 36), (9,)]
    assert all(count < stage.windows for each in sparse for stage, (count, *_) in zip(plan.stages, each, strict=True))
    assert last[2] == (36, 35, 35)
    assert len(sparse) < 25


def test_how_rows_are_shared_out_compiles_nothing(weights: BackboneWeights) -> None:
    plan = plan_of(weights, 4, (672, 672))
    stage, block = plan.stages[0], weights.stages[0].blocks[0]
    one, other = (choose(stage.x, block, 196 * count, 4 * count) for count in (230, 172))
    assert one != other
    assert one.compiled == other.compiled
    assert one.held
    few = choose(stage.x, block, 196 * 20, 80)
    assert not few.held
    assert few.compiled != one.compiled


def test_a_feed_forward_network_is_chained_where_its_programs_fill_half_a_wave_to_a_whole(
    weights: BackboneWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(weights, 4, (672, 672))
    stage, block = plan.stages[1], weights.stages[1].blocks[0]
    apart, together = (choose(stage.x, block, 196 * count, 4 * count) for count in (57, 72))
    assert apart.first is not None
    assert together.feed_forward is not None
    monkeypatch.setattr(choices, "chains", lambda x, first: first.weight.shape == (192, 768))
    for count, before in ((57, apart), (72, together)):
        chained = choose(stage.x, block, 196 * count, 4 * count)
        assert chained == replace(before, chained=True, feed_forward=None, first=None, second=None)
    found = [
        {
            count
            for count in range(1, stage.windows + 1)
            if choose(stage.x, of.blocks[0], 196 * count, 4 * count).chained
        }
        for stage, of in zip(plan.stages, weights.stages, strict=True)
    ]
    assert found == [set(), set(range(43, 87)), set(), set()]
    assert found[1] & {count for each in to_compile(plan, weights) for count in each[1]}


def test_a_feed_forward_network_is_shared_where_its_programs_fill_a_wave(
    weights: BackboneWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(weights, 4, (672, 672))
    assert plan.exchange is None
    stage, block = plan.stages[2], weights.stages[2].blocks[0]
    apart = choose(stage.x, block, 2744, 56)
    assert not apart.shared
    monkeypatch.setattr(choices, "shares", lambda x, first: first.weight.shape == (384, 1536))
    shared = choose(stage.x, block, 2744, 56)
    assert shared == replace(apart, shared=True, first=None, second=None)
    assert shared.feed_forward is None
    found = [
        {count for count in range(1, stage.windows + 1) if choose(stage.x, of.blocks[0], 196 * count, 4 * count).shared}
        for stage, of in zip(plan.stages, weights.stages, strict=True)
    ]
    assert found == [set(), set(), {13, 14}, set()]
    assert {13, 14} & {count for each in to_compile(plan, weights) for count in each[2]}
