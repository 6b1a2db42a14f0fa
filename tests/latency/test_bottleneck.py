"""One sum of terms, or the larger of two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sparsevit.latency.bottleneck import fit_bottlenecks, slower
from sparsevit.latency.design import designed, draw
from sparsevit.sparsity import Sparsity, SparsitySpace

SPACE = SparsitySpace()
WINDOWS = (576, 144, 36, 9)
TOTALS = np.array([576, 144, 36, 36, 36, 9])


def device(sparsity: Sparsity) -> float:
    return 4.0 + float(np.array([2.0, 1.5, 1, 1, 1, 1]) @ (np.array(sparsity.kept(WINDOWS)) / TOTALS))


def host(sparsity: Sparsity) -> float:
    return 8.0 + 0.2 * sum(value > 0 for value in sparsity.flat)


def waiting(sparsity: Sparsity) -> float:
    return max(device(sparsity), host(sparsity))


@pytest.mark.parametrize(
    ("latency", "sums", "noise"), [(device, 1, 0.002), (device, 1, 0.02), (host, 1, 0.02), (waiting, 2, 0.005)]
)
def test_two_sums_where_the_device_waits_for_its_host_and_one_elsewhere(
    latency: Callable[[Sparsity], float], sums: int, noise: float
) -> None:
    rng = np.random.default_rng(0)
    measured = [SPACE.dense, *designed(SPACE, WINDOWS, 72, 0)]
    ms = np.array([latency(one) for one in measured]) * np.exp(rng.normal(0, noise, len(measured)))
    terms = fit_bottlenecks(SPACE, WINDOWS, measured, ms, np.ones(len(measured)))
    assert len(terms) == sums
    checks = draw(SPACE, WINDOWS, 100, 1, besides=measured)
    predicted = slower(SPACE, terms, np.array([SPACE.encode(one) for one in checks]))
    exact = np.array([latency(one) for one in checks])
    assert np.abs(predicted / exact - 1).mean() < max(0.6 * noise, 0.005)


def test_few_measurements_make_one_sum() -> None:
    space = SparsitySpace((2,), ("0", "0.5"))
    terms = fit_bottlenecks(space, (10,), list(space), np.array([2.0, 1.0]), np.ones(2))
    assert len(terms) == 1
