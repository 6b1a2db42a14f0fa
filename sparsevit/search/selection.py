"""Which trials matter: the Pareto front, those of it to confirm, and the best. Pure functions on trial results."""

from __future__ import annotations

from collections.abc import Sequence

from sparsevit.search.results import Bounds, Measured, TrialResult


def pareto_front(trials: Sequence[TrialResult], metric: str) -> list[TrialResult]:
    """Feasible trials that no other feasible one beats in both accuracy and latency, fastest first.

    The latency is the one that the search went by.

    Of equal ones the earliest stays.
    """
    feasible = [trial for trial in trials if trial.feasible]
    front: list[TrialResult] = []
    for trial in sorted(feasible, key=lambda one: (one.judged_ms, -one.accuracy[metric], one.number)):
        if not front or trial.accuracy[metric] > front[-1].accuracy[metric]:
            front.append(trial)
    return front


def to_confirm(front: Sequence[TrialResult], metric: str, limit: int) -> list[TrialResult]:
    """At most `limit` of the front, spread evenly along it by latency rank, its ends and the most accurate included."""
    if len(front) <= limit:
        return list(front)
    last = len(front) - 1
    best = max(range(len(front)), key=lambda i: front[i].accuracy[metric])
    if limit == 1:
        return [front[best]]
    places = {round(i * last / (limit - 1)) for i in range(limit)}
    if best not in places:
        places.remove(min(places - {0, last} or places, key=lambda i: abs(i - best)))
        places.add(best)
    return [front[i] for i in sorted(places)]


def best_within(trials: Sequence[TrialResult], metric: str, bounds: Bounds) -> TrialResult | None:
    """The most accurate trial within the bounds, the faster of equals; `None` if there is none.

    Where some trials are confirmed, they alone count, by their confirmed accuracy and their measured latency. Otherwise
    it is the accuracy on the search images and the latency that the search went by.
    """
    confirmed = [one for one in trials if one.confirmed is not None and one.measured is not None]
    if confirmed:
        within = [one for one in confirmed if one.measured and bounds.contains(one.measured.median_ms)]
        return max(within, key=lambda one: _confirmed_rank(one, metric), default=None)
    within = [one for one in trials if bounds.contains(one.judged_ms)]
    return max(within, key=lambda one: (one.accuracy[metric], -one.judged_ms), default=None)


def surprises(trials: Sequence[TrialResult], error: float) -> list[TrialResult]:
    """Trials whose measured latency lies further from the predicted one than `error`, a fraction of the predicted.

    The interval of the measurement counts in favour of the prediction.
    """
    return [one for one in trials if one.measured is not None and not _agree(one.predicted_ms, one.measured, error)]


def _agree(predicted_ms: float, measured: Measured, error: float) -> bool:
    return measured.low_ms <= predicted_ms * (1 + error) and measured.high_ms >= predicted_ms * (1 - error)


def _confirmed_rank(trial: TrialResult, metric: str) -> tuple[float, float]:
    assert trial.confirmed is not None
    assert trial.measured is not None
    return trial.confirmed[metric], -trial.measured.median_ms
