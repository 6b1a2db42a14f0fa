"""Optuna's own reusable tests of samplers: ours work in any study of Optuna's, not in searches alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase

from sparsevit.search.candidates import find_candidates
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import make_sampler
from sparsevit.sparsity import SparsitySpace

SPACE = SparsitySpace((2, 2, 2, 2))
CANDIDATES = find_candidates(SPACE, (256, 64, 16, 4), lambda levels: 20.0 - levels.sum(axis=1), Bounds(5.0, 15.0))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


class TestDefault(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: make_sampler("surrogate", CANDIDATES, population=4, seed=0)


class TestNsga2(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: make_sampler("nsga2", CANDIDATES, population=4, seed=0)


@pytest.mark.parametrize("name", ["surrogate", "nsga2"])
def test_layers_of_a_search_that_are_held_fixed_stay_so(name: str) -> None:
    sampler = make_sampler(name, CANDIDATES, population=4, seed=0)  # type: ignore[arg-type]
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(8):
        some = {key: one for key, one in sampler.distributions.items() if key != "s2"}
        trial = study.ask(some)
        assert trial.params.keys() == some.keys()
        study.tell(trial, [float(np.sum(list(trial.params.values()))), 1.0])
