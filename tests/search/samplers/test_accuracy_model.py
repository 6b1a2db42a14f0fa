"""The model of accuracy recovers what is of its kind, says how sure it is, and never breaks on odd trials."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsevit.search.samplers.accuracy_model import AccuracyModel

RATIOS = np.arange(9) / 10


def surface(levels: NDArray[np.integer]) -> NDArray[np.float64]:
    x = RATIOS[levels]
    return 0.9 - x @ [0.01, 0.03, 0.0, 0.05] - 0.04 * x[:, 0] ** 2 - 0.05 * x[:, 1] * x[:, 3]


def draw(count: int, seed: int = 0) -> NDArray[np.intp]:
    return np.random.default_rng(seed).integers(9, size=(count, 4))


def test_a_smooth_surface_with_a_pair_is_recovered() -> None:
    levels, others = draw(60), draw(200, seed=1)
    model = AccuracyModel.fit(RATIOS, levels, surface(levels))
    means, _ = model.predict(others)
    assert np.abs(means - surface(others)).max() < 0.002
    assert model.noise < 0.001


def test_a_cliff_is_followed() -> None:
    levels, others = draw(300), draw(200, seed=1)

    def steep(at: NDArray[np.integer]) -> NDArray[np.float64]:
        return surface(at) - 0.1 * (at[:, 2] >= 5)

    means, _ = AccuracyModel.fit(RATIOS, levels, steep(levels)).predict(others)
    assert np.abs(means - steep(others)).max() < 0.02


def test_deviations_are_those_of_the_errors() -> None:
    rng = np.random.default_rng(2)
    levels, others = draw(50), draw(500, seed=1)
    noisy = surface(levels) + rng.normal(0, 0.004, len(levels))
    means, deviations = AccuracyModel.fit(RATIOS, levels, noisy).predict(others)
    truth = surface(others) + rng.normal(0, 0.004, len(others))
    assert 0.5 < np.sqrt(np.mean(((means - truth) / deviations) ** 2)) < 1.6


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 7), st.integers(2, 9), st.integers(0, 2**31))
def test_means_by_tables_are_those_by_terms_whatever_the_trials(
    count: int, layers: int, ratios: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(ratios, size=(count, layers)).astype(np.uint8)
    model = AccuracyModel.fit(RATIOS[:ratios], levels, rng.random(count))
    means, deviations = model.predict(levels)
    np.testing.assert_allclose(model.mean(levels), means, atol=1e-9)
    assert np.isfinite(means).all()
    assert (deviations > 0).all()


@pytest.mark.parametrize("accuracy", [0.0, 0.9])
def test_accuracies_that_are_all_the_same_are_no_trouble(accuracy: float) -> None:
    levels = draw(20)
    means, deviations = AccuracyModel.fit(RATIOS, levels, np.full(20, accuracy)).predict(draw(50, seed=1))
    np.testing.assert_allclose(means, accuracy, atol=1e-6)
    assert (deviations > 0).all()
