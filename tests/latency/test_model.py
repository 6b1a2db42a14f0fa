from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsevit.errors import UserError
from sparsevit.latency.fitting import fit
from sparsevit.latency.model import LatencyModel, OldModelError, error_limit, error_of
from sparsevit.latency.results import HeldOut
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity, SparsitySpace

TARGET = Target("cpu", 1, size=(448, 448))
SPACE = SparsitySpace()
WINDOWS = (256, 64, 16, 4)


def cost(sparsity: Sparsity) -> float:
    """Falls with the windows kept; a stage that is pruned is ranked."""
    kept = sum(count * 0.1 for count in sparsity.kept(WINDOWS))
    return 20 + kept + sum(1.0 for stage in sparsity.stages if any(stage))


@pytest.fixture
def model(clock_type: Any, backbone_type: Any) -> LatencyModel:
    clock = clock_type()
    return fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock, budget_s=5)


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
    assert error == error_of(checks)
    assert error.worst == checks[0]
    assert error.mean == pytest.approx((0.1 + 0.02) / 3)
    assert error.largest == pytest.approx(0.1)
    assert error.tau == 1
    assert np.isnan(replace(model, held_out=()).error.mean)


def test_what_is_measured_again_is_known_and_spread_over_the_latencies(model: LatencyModel) -> None:
    assert model.known(3) == {SPACE.dense: model.dense.median_ms}
    fitted = {cell.sparsity: cell.timing.median_ms for cell in model.cells}
    for count, others in ((8, 2), (200, 8)):
        known = model.known(count)
        assert len(known) == 1 + others
        assert known.items() <= fitted.items()
        latencies = [ms for sparsity, ms in known.items() if sparsity != SPACE.dense]
        assert latencies == sorted(latencies)
        middle = sorted(fitted.values())[len(fitted) // 2]
        assert latencies[0] < middle < latencies[-1]


def test_a_sparsity_outside_the_space_is_refused(model: LatencyModel) -> None:
    with pytest.raises(UserError, match="outside the grid"):
        model.predict(Sparsity.parse("0.05/0/0,0,0/0"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 2}', "x" * 9])
def test_text_that_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="latency model"):
        LatencyModel.from_json(text)


def test_a_model_whose_cells_do_not_fit_is_refused(model: LatencyModel) -> None:
    fields = json.loads(model.to_json())
    fields["terms"][0]["cells"].pop()
    with pytest.raises(UserError, match="do not fit its space"):
        LatencyModel.from_json(json.dumps(fields))


def test_a_model_without_terms_is_refused(model: LatencyModel) -> None:
    fields = json.loads(model.to_json())
    fields["terms"] = []
    with pytest.raises(UserError, match="it has no terms"):
        LatencyModel.from_json(json.dumps(fields))


@pytest.mark.parametrize("number", [1, 99, None])
def test_a_model_of_another_version_is_told_apart(number: int | None) -> None:
    with pytest.raises(OldModelError, match=f"format {number!r}, but this version reads 2: fit it again"):
        LatencyModel.from_json(json.dumps({"format": number, "cells": []}))


def test_the_limit_is_tighter_where_graphs_are_replayed() -> None:
    limits = [error_limit(Target(*device)) for device in (("cpu",), ("cuda:0",))]
    replayed = error_limit(Target("cuda:0", engine="graph"))
    assert limits == [0.05, 0.04]
    assert replayed == 0.01
