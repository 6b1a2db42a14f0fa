"""Whether more trials would help under another bound, by the rule as it is written down."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sparsevit.search.advice import Advice, advise
from sparsevit.search.results import Bounds, StudyResults, TrialResult
from sparsevit.sparsity import Sparsity

METRIC = "bbox_mAP"


def study(rows: Sequence[tuple[float, float]], high: float = 50.0) -> StudyResults:
    """A study of (accuracy, ms) trials in the order they were tried."""
    sparsity = Sparsity.parse("0/0.5")
    trials = [TrialResult(i, sparsity, {METRIC: accuracy}, ms, True, 1.0) for i, (accuracy, ms) in enumerate(rows)]
    return StudyResults("s", "cpu", METRIC, (METRIC,), Bounds(0.0, high), trials, len(trials), ("s1", "s2"))


def test_above_what_was_searched() -> None:
    advice = advise(study([(0.5, 45.0)] * 40), 60.0, population=5)
    assert str(advice) == (
        "more trials would likely help: the study searched up to 50 ms, nothing between that and 60 ms"
    )


def test_few_trials_near_the_bound() -> None:
    advice = advise(study([(0.5, 29.0)] * 4 + [(0.4, 26.0)] * 30 + [(0.6, 49.0)] * 20), 30.0, population=5)
    assert advice == Advice(
        True,
        "only 4 of 54 trials lie within 10% below 30 ms (20 below the searched 50 ms), less than a population of 5",
    )


def test_early_and_late_improvement() -> None:
    early = [(0.3, 29.0), (0.6, 29.0), *[(0.5, 29.0)] * 14, *[(0.9, 48.0)] * 9]
    advice = advise(study(early), 30.0, population=5)
    assert not advice.likely
    assert advice.reason.endswith("the best of the 16 within it was number 2 to be tried: nothing better came since")
    late = [*early[:13], (0.7, 28.0), *early[13:]]
    advice = advise(study(late), 30.0, population=5)
    assert advice.likely
    assert "was number 14 to be tried: it still improved late" in advice.reason


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(20, 50)), max_size=40), st.integers(10, 70))
def test_every_study_gets_an_answer(rows: list[tuple[int, int]], bound: int) -> None:
    results = study([(accuracy / 10, float(ms)) for accuracy, ms in rows])
    advice = advise(results, float(bound), population=4)
    near = [ms for _, ms in rows if 0.9 * bound < ms <= bound]
    assert "\n" not in str(advice)
    if bound > 50 or len(near) < 4:
        assert advice.likely
    elif len({accuracy for accuracy, ms in rows if ms <= bound}) == 1:  # the first of equals is the best
        within = sum(ms <= bound for _, ms in rows)
        assert advice.likely == (within - 1 < within / 4)
