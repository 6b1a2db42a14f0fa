"""Front, trials to confirm, and best, by their definitions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sparsevit.search.results import Bounds, Measured, TrialResult
from sparsevit.search.selection import best_within, pareto_front, surprises, to_confirm
from sparsevit.sparsity import Sparsity

METRIC = "bbox_mAP"
BOUNDS = Bounds(0.0, 50.0)
SPARSITY = Sparsity.parse("0/0.5")


def trial(number: int, accuracy: float, ms: float, feasible: bool = True) -> TrialResult:
    return TrialResult(number, SPARSITY, {METRIC: accuracy}, ms, feasible, seconds=1.0)


def confirm(one: TrialResult, accuracy: float, ms: float) -> TrialResult:
    return replace(one, confirmed={METRIC: accuracy}, measured=Measured(ms, ms * 0.99, ms * 1.01))


trials = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 8), st.booleans()).map(lambda t: (t[0] / 10, float(t[1]), t[2])),
    max_size=20,
).map(lambda rows: [trial(number, *row) for number, row in enumerate(rows)])


def beats(one: TrialResult, other: TrialResult) -> bool:
    no_worse = one.accuracy[METRIC] >= other.accuracy[METRIC] and one.predicted_ms <= other.predicted_ms
    return no_worse and (one.accuracy[METRIC], one.predicted_ms) != (other.accuracy[METRIC], other.predicted_ms)


@given(trials)
def test_the_front_is_what_nothing_feasible_beats(found: list[TrialResult]) -> None:
    feasible = [one for one in found if one.feasible]
    front = pareto_front(found, METRIC)
    values = {(one.accuracy[METRIC], one.predicted_ms) for one in front}
    expected = {
        (one.accuracy[METRIC], one.predicted_ms) for one in feasible if not any(beats(two, one) for two in feasible)
    }
    assert values == expected
    assert len(front) == len(values)
    assert [one.predicted_ms for one in front] == sorted(one.predicted_ms for one in front)


@given(st.integers(1, 30), st.integers(1, 30))
def test_confirmed_are_spread_over_the_front(size: int, limit: int) -> None:
    front = [trial(number, number / 100, 10.0 + number) for number in range(size)]
    chosen = to_confirm(front, METRIC, limit)
    assert len(chosen) == min(size, limit)
    assert front[-1] in chosen
    if limit > 1:
        assert front[0] in chosen
    places = [one.number for one in chosen]
    gaps = [late - early for early, late in pairwise(places)]
    assert places == sorted(set(places))
    if len(gaps) > 1:
        assert max(gaps) - min(gaps) <= 1


def test_only_confirmed_trials_count_once_there_are_some() -> None:
    fast, slow, late = trial(0, 0.6, 30.0), trial(1, 0.7, 49.0), trial(2, 0.9, 45.0)
    assert best_within([fast, slow, late], METRIC, BOUNDS) == late
    fast, slow = confirm(fast, 0.58, 31.0), confirm(slow, 0.69, 49.5)
    assert best_within([fast, slow, late], METRIC, BOUNDS) == slow
    slow = confirm(slow, 0.69, 50.5)
    assert best_within([fast, slow, late], METRIC, BOUNDS) == fast
    assert best_within([slow, late], METRIC, BOUNDS) is None
    assert best_within([], METRIC, BOUNDS) is None


def test_of_equal_trials_the_faster_is_best() -> None:
    one, other = trial(0, 0.6, 30.0), trial(1, 0.6, 29.0)
    assert best_within([one, other], METRIC, BOUNDS) == other


def test_surprises_lie_beyond_error_and_interval() -> None:
    one = trial(0, 0.6, 100.0)
    assert surprises([one], 0.02) == []
    for measured, surprising in ((102.0, False), (102.9, False), (103.2, True), (97.2, False), (96.5, True)):
        assert bool(surprises([confirm(one, 0.6, measured)], 0.02)) is surprising
