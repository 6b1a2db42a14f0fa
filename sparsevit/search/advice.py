"""Would more trials help under a latency bound that a study was not made for? A rule of thumb, with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsevit.search.results import StudyResults, TrialResult

NEAR = 0.1
"""How far below a bound a trial still tells of it, a fraction of the bound: the best under a bound lie close to it."""

LATE = 0.25
"""An improvement among the last so many of the trials, a fraction, is a late one."""

SLACK = 1e-3
"""Bounds that differ by a smaller fraction are the same."""


@dataclass(frozen=True)
class Advice:
    """Whether more trials would likely help, and why.

    Attributes:
        likely: whether they would.
        reason: in words.
    """

    likely: bool
    reason: str

    def __str__(self) -> str:
        return f"more trials would {'likely help' if self.likely else 'likely help little'}: {self.reason}"


def advise(results: StudyResults, max_ms: float, *, population: int) -> Advice:
    """Judge from the trials of a study whether its best one of at most `max_ms` could be bettered.

    The rule, in this order. Likely, if the study did not search up to `max_ms` at all. Likely, if fewer trials than one
    population lie within 10 % below it. Likely, if the best of those within it came late, among the last quarter of
    them: were trials drawn at random, the next of n would be a new best with a chance of 1 in n + 1, and a search that
    has just improved does better than that. Otherwise unlikely.

    Args:
        results: of the study.
        max_ms: the bound in question, ms; latencies are those that the search went by.
        population: of the study's sampler.
    """
    searched = results.bounds.max_ms
    if max_ms > searched * (1 + SLACK):
        return Advice(True, f"the study searched up to {searched:.4g} ms, nothing between that and {max_ms:.4g} ms")
    within = sorted((one for one in results.trials if one.judged_ms <= max_ms), key=lambda one: one.number)
    near, usual = _near(within, max_ms), _near(results.trials, searched)
    count = f"{near} of {len(results.trials)} trials lie within {NEAR:.0%} below {max_ms:.4g} ms"
    if max_ms < searched * (1 - SLACK):
        count += f" ({usual} below the searched {searched:.4g} ms)"
    if near < population:
        return Advice(True, f"only {count}, less than a population of {population}")
    place = _place_of_best(within, results.metric)
    when = f"the best of the {len(within)} within it was number {place} to be tried"
    if len(within) - place < LATE * len(within):
        return Advice(True, f"{count}, but {when}: it still improved late")
    return Advice(False, f"{count}, and {when}: nothing better came since")


def _near(trials: Sequence[TrialResult], max_ms: float) -> int:
    return sum(max_ms * (1 - NEAR) < one.judged_ms <= max_ms for one in trials)


def _place_of_best(within: list[TrialResult], metric: str) -> int:
    """Which trial, counted from 1, was the first to be as accurate as the best; 0 without any."""
    best = max((one.accuracy[metric] for one in within), default=0.0)
    return next((place for place, one in enumerate(within, 1) if one.accuracy[metric] >= best), 0)
