"""Optuna's own samplers by name, where what they suggest becomes a feasible configuration that was never tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from sparsevit.search.candidates import Candidates
from sparsevit.search.samplers.base import CandidateSampler, Draw, Moment

START = 10
"""Trials before a model is fitted, as in Optuna; they are spread over the feasible band."""

ATTEMPTS = {"random": 200, "tpe": 4, "gp": 1}
"""Suggestions asked for before the free candidate nearest to the first is taken."""


class WrappedSampler(CandidateSampler):
    """One of Optuna's samplers, made anew for every trial, with the trial's own seed."""

    def __init__(
        self,
        candidates: Candidates,
        kind: str,
        *,
        seed: int,
        accept: Callable[[int], bool] | None = None,
        refused: Iterable[int] = (),
    ) -> None:
        """Of which `kind`: `random`, `tpe`, `gp`; the rest is as for every `CandidateSampler`."""
        super().__init__(candidates, seed=seed, accept=accept, refused=refused)
        self._kind = kind

    def propose(self, moment: Moment) -> tuple[int, Draw]:
        if self._kind != "random" and moment.index < START:
            return self.spread(moment.index, START, moment.free, moment.rng), Draw()
        return self.first_free(self._suggestions(moment), moment)

    def _suggestions(self, moment: Moment) -> Iterator[NDArray[np.intp]]:
        """Levels, shape `(1, L)`, as often as is worth it."""
        sampler = _INNER[self._kind](int(moment.rng.integers(2**31)))
        several = {name: one for name, one in self.distributions.items() if not one.single()}
        for _ in range(ATTEMPTS[self._kind]):
            params = sampler.sample_relative(moment.study, moment.trial, several)
            for name in [one for one in self.distributions if one not in params]:
                params[name] = sampler.sample_independent(moment.study, moment.trial, name, self.distributions[name])
            yield np.array([[params[name] for name in self.distributions]], np.intp)


_INNER: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=START, multivariate=True),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=START),
}
