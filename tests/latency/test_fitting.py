from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsevit.errors import UserError
from sparsevit.latency.fitting import PROGRESS, check, extend, fit
from sparsevit.latency.model import LatencyModel, error_of
from sparsevit.latency.synthetic import Device, SyntheticBackbone, cpu
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
    assert len(model.held_out) == 16
    assert model.error.largest < 2e-3
    assert model.error.mean <= model.error.largest
    assert model.error.tau > 0.95
    assert model.environment["threads"] == "1"


def test_drift_does_not_reach_the_model(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type(pace=lambda now: 1 + 0.3 * np.sin(now / 10))
    model = fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock, budget_s=120)
    assert model.error.mean < 0.02
    assert model.error.tau > 0.9


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
    assert second.predict(SPACE.uniform("0.8")) == pytest.approx(first.predict(SPACE.uniform("0.8")), rel=1e-5)
    assert [check.predicted_ms for check in second.held_out] == pytest.approx(
        [check.predicted_ms for check in first.held_out]
    )
    assert second.error.mean == pytest.approx(0.5, abs=1e-3)
    assert len({check.sparsity.kept(WINDOWS) for check in second.held_out}) == 16


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


def test_checks_are_of_configurations_never_seen(model: LatencyModel, clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    checks = check(model, backbone_type(clock, cost), 30, clock=clock)
    seen = {cell.sparsity.kept(WINDOWS) for cell in model.cells} | {
        one.sparsity.kept(WINDOWS) for one in model.held_out
    }
    assert len(checks) == 30
    assert not seen & {one.sparsity.kept(WINDOWS) for one in checks}
    assert error_of(checks).largest < 3e-3


def test_a_check_says_where_the_device_became_another(model: LatencyModel, clock_type: Any, backbone_type: Any) -> None:
    """A slower device alone is drift, and taken out; one on which a stage costs twice as much is not."""
    clock = clock_type()
    slow = check(model, backbone_type(clock, lambda sparsity: 1.3 * cost(sparsity)), 30, clock=clock)
    assert error_of(slow).mean < 3e-3
    other = check(model, backbone_type(clock, lambda one: cost(one) - 14 * float(one.flat[1])), 30, clock=clock)
    assert error_of(other).mean > 0.02
    assert error_of(other).worst is not None


def test_what_cannot_be_checked_is_refused(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    space = SparsitySpace((2,), ("0", "0.5"))
    backbone = backbone_type(clock, lambda sparsity: 100 - 50 * float(sum(sparsity.flat)), space.depths)
    model = fit(backbone, TARGET, space, clock=clock)
    with pytest.raises(UserError, match="measured already: none is left to check"):
        check(model, backbone, 5, clock=clock)
    with pytest.raises(UserError, match="check at least 2"):
        check(model, backbone, 1, clock=clock)


def test_an_extension_uses_what_was_measured_and_checks_on_others(clock_type: Any, backbone_type: Any) -> None:
    rng = np.random.default_rng(0)
    clock = clock_type(pace=lambda now: float(np.exp(rng.normal(0, 0.05))))
    first = fit(backbone_type(clock, cost), TARGET, SPACE, clock=clock, budget_s=20)
    second = extend(first, backbone_type(clock, cost), clock=clock, budget_s=20)
    assert second.extensions == 1
    assert second.seconds > first.seconds
    assert {cell.sparsity for cell in second.cells} > {cell.sparsity for cell in first.cells}
    assert {check.sparsity for check in first.held_out} <= {cell.sparsity for cell in second.cells}
    checked = {check.sparsity.kept(WINDOWS) for check in second.held_out}
    assert not checked & {cell.sparsity.kept(WINDOWS) for cell in second.cells}

    def truth(model: LatencyModel) -> float:
        every = [SPACE.decode(levels) for levels in rng.integers(9, size=(200, 6)).tolist()]
        off = np.array([model.predict(one) / cost(one) for one in every])
        return float(np.abs(off / np.median(off) - 1).mean())

    assert truth(second) < truth(first)


def test_a_space_that_is_measured_whole_is_extended_by_measuring_it_again(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    space = SparsitySpace((1, 1), ("0", "0.5"))
    backbone = backbone_type(clock, lambda sparsity: 100 - 50 * float(sum(sparsity.flat)), space.depths)
    model = extend(fit(backbone, TARGET, space, clock=clock), backbone, clock=clock)
    assert len(model.held_out) >= 2
    assert model.error.mean < 0.01


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("changes", "mean", "largest", "tau"),
    [
        ({}, 0.0025, 0.009, 0.985),
        ({"repeat_us": 20.0}, 0.0025, 0.009, 0.985),
        ({"depths": (2, 2, 18, 2), "channels": 128}, 0.0025, 0.009, 0.985),
        ({"noise": 0.01, "drift": 0.03}, 0.004, 0.013, 0.98),
        ({"cross": 0.05}, 0.004, 0.0145, 0.98),
        ({"floor_ms": 2.0, "noise": 0.01}, 0.012, 0.25, 0.85),
    ],
    ids=str,
)
def test_a_made_up_gpu_is_predicted(
    changes: dict[str, Any], mean: float, largest: float, tau: float, seed: int
) -> None:
    """Kernels in waves, ranking, gathering, luck in the choice of kernels, noise and drift: 200 random checks."""
    device = Device(**changes, seed=seed)
    backbone = SyntheticBackbone(device)
    space = SparsitySpace(device.depths)
    model = fit(backbone, Target("cpu", 1, size=device.size), space, budget_s=12, seed=seed, clock=backbone.clock)
    error = error_of(check(model, backbone, 200, budget_s=25, clock=backbone.clock))
    assert error.mean < mean
    assert error.largest < largest
    assert error.tau > tau
    assert model.seconds < 15


@pytest.mark.parametrize("seed", range(3))
def test_a_made_up_cpu_is_predicted(seed: int) -> None:
    device = cpu(seed=seed)
    backbone = SyntheticBackbone(device)
    model = fit(backbone, Target("cpu", 1, size=device.size), SPACE, seed=seed, clock=backbone.clock)
    error = error_of(check(model, backbone, 60, clock=backbone.clock))
    assert error.mean < 0.03
    assert error.tau > 0.88
