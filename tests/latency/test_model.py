from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsevit.errors import UserError
from sparsevit.latency.model import PROGRESS, LatencyModel, fit
from sparsevit.latency.results import HeldOut
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity, SparsitySpace

TARGET = Target("cpu", 1, size=(448, 448))
SPACE = SparsitySpace()
WINDOWS = (256, 64, 16, 4)
MS = (30.0, 15, 8, 7, 6, 5)


def cost(sparsity: Sparsity) -> float:
    """20 ms that nothing saves, each layer's share by kept windows, and 1 ms to rank a stage that is pruned."""
    totals = (256, 64, 16, 16, 16, 4)
    kept = sparsity.kept(WINDOWS)
    layers = sum(ms * some / total for ms, some, total in zip(MS, kept, totals, strict=True))
    return 20 + layers + sum(1.0 for stage in sparsity.stages if any(stage))


@pytest.fixture
def model(clock_type: Any, backbone_type: Any) -> LatencyModel:
    clock = clock_type()
    return fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock)


def test_an_additive_device_is_predicted_exactly(model: LatencyModel) -> None:
    assert model.windows == WINDOWS
    assert model.dense.median_ms == pytest.approx(91)
    assert model.predict(SPACE.dense) == pytest.approx(91, rel=1e-3)
    assert model.predict(SPACE.uniform("0.8")) == pytest.approx(cost(SPACE.uniform("0.8")), rel=2e-3)
    assert len(model.held_out) == 12
    assert model.error.largest < 2e-3
    assert model.error.mean <= model.error.largest
    assert model.error.tau > 0.95
    assert model.environment["threads"] == "1"


def test_drift_does_not_reach_the_model(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type(pace=lambda now: 1 + 0.3 * np.sin(now / 10))
    model = fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock, budget_s=120)
    assert model.error.mean < 0.02
    assert model.error.tau > 0.9


def test_a_whole_space_at_once_equals_one_by_one(model: LatencyModel) -> None:
    levels = SPACE.all_levels()
    latencies = model.predict_levels(levels)
    assert latencies.shape == (len(SPACE),)
    assert latencies.dtype == np.float64
    for number in range(0, len(SPACE), 9001):
        assert model.predict(SPACE.decode(levels[number].tolist())) == latencies[number]


def test_sparsities_that_keep_the_same_windows_have_one_latency(model: LatencyModel) -> None:
    latencies: dict[tuple[int, ...], float] = {}
    for level in range(9):
        sparsity = SPACE.decode([0, 0, 0, 0, 0, level])
        assert latencies.setdefault(sparsity.kept(WINDOWS), model.predict(sparsity)) == model.predict(sparsity)
    assert len(latencies) == 4


def test_json_reads_back_equal(model: LatencyModel) -> None:
    again = LatencyModel.from_json(model.to_json())
    assert again == model
    assert again.error == model.error
    assert again.predict(SPACE.uniform("0.5")) == model.predict(SPACE.uniform("0.5"))


def test_error_is_what_the_held_out_say(model: LatencyModel) -> None:
    dense = SPACE.dense
    checks = (HeldOut(dense, 90, 100), HeldOut(dense, 51, 50), HeldOut(dense, 40, 40))
    error = replace(model, held_out=checks).error
    assert error.mean == pytest.approx((0.1 + 0.02) / 3)
    assert error.largest == pytest.approx(0.1)
    assert error.tau == 1
    assert np.isnan(replace(model, held_out=()).error.mean)


def test_one_seed_one_model(clock_type: Any, backbone_type: Any) -> None:
    def fitted(seed: int) -> LatencyModel:
        clock = clock_type()
        return fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock, seed=seed)

    assert fitted(3) == fitted(3)
    assert {check.sparsity for check in fitted(3).held_out} != {check.sparsity for check in fitted(4).held_out}


def test_held_out_configurations_had_no_part_in_the_fit(clock_type: Any, backbone_type: Any) -> None:
    """Were they slower, the check would say so, and the model would be the same."""
    first = fit(backbone_type(clock := clock_type(), cost), TARGET, SPACE, clock=clock)
    held = {check.sparsity for check in first.held_out}

    def slower(sparsity: Sparsity) -> float:
        return cost(sparsity) * (2 if sparsity in held else 1)

    second = fit(backbone_type(clock := clock_type(), slower), TARGET, SPACE, clock=clock)
    assert second.cells == pytest.approx(np.array(first.cells), abs=1e-6)
    assert [check.predicted_ms for check in second.held_out] == pytest.approx(
        [check.predicted_ms for check in first.held_out]
    )
    assert second.error.mean == pytest.approx(0.5, abs=1e-3)
    assert len({check.sparsity.kept(WINDOWS) for check in second.held_out}) == 12


@pytest.mark.parametrize(
    ("space", "held_out"),
    [(SparsitySpace((2,)), 8), (SparsitySpace((1, 1), ("0", "0.5")), 3), (SparsitySpace((2,), ("0",)), 0)],
)
def test_small_spaces(clock_type: Any, backbone_type: Any, space: SparsitySpace, held_out: int) -> None:
    clock = clock_type()
    backbone = backbone_type(clock, lambda sparsity: 100 - 50 * float(sum(sparsity.flat)), space.depths)
    model = fit(backbone, TARGET, space, clock=clock)
    assert len(model.held_out) == held_out or 2 <= len(model.held_out) < held_out
    assert model.predict(space.dense) == pytest.approx(100, rel=1e-3)
    assert not model.error.mean > 0.01


def test_progress_adds_up(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    steps: list[int] = []
    fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock, step=lambda advance=1, note="": steps.append(advance))
    assert sum(steps) == PROGRESS


def test_what_cannot_be_fitted_is_refused(clock_type: Any, backbone_type: Any) -> None:
    backbone = backbone_type(clock_type(), cost)
    with pytest.raises(UserError, match=r"the space has depths \(2, 2\), but the backbone has \(2, 2, 6, 2\)"):
        fit(backbone, TARGET, SparsitySpace((2, 2)))
    with pytest.raises(UserError, match="hold out at least 2"):
        fit(backbone, TARGET, SPACE, held_out=1)


def test_a_sparsity_outside_the_space_is_refused(model: LatencyModel) -> None:
    with pytest.raises(UserError, match="outside the grid"):
        model.predict(Sparsity.parse("0.05/0/0,0,0/0"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 99}'])
def test_text_that_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="latency model"):
        LatencyModel.from_json(text)


def test_a_model_whose_cells_do_not_fit_is_refused(model: LatencyModel) -> None:
    fields = json.loads(model.to_json())
    fields["cells"] = fields["cells"][:-1]
    with pytest.raises(UserError, match="do not fit its space"):
        LatencyModel.from_json(json.dumps(fields))
