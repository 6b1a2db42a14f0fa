"""What confirming changes is said, each thing once, and nothing where searching and confirming agree."""

from __future__ import annotations

import pytest

from sparsevit.search.bounds import Limit
from sparsevit.search.confirmation import differences
from sparsevit.search.export import better_unconfirmed, bound_ms, choose
from sparsevit.search.results import Bounds, HeldOut, Measured, Reference, StudyResults, TrialResult
from sparsevit.sparsity import Sparsity

METRIC = "bbox_mAP"
SPARSITY = Sparsity.parse("0/0.5")
DENSE = Sparsity.parse("0/0")


def trial(number: int, found: float, ms: float, confirmed: float | None = None, measured: float = 0.0) -> TrialResult:
    if confirmed is None:
        return TrialResult(number, SPARSITY, {METRIC: found}, ms, True, 1.0)
    interval = Measured(measured, measured * 0.999, measured * 1.001)
    return TrialResult(
        number, SPARSITY, {METRIC: found}, ms, True, 1.0, confirmed={METRIC: confirmed}, measured=interval
    )


def study(*trials: TrialResult) -> StudyResults:
    """A study whose latency model erred by 2 % at most."""
    return StudyResults(
        "s", "cpu", METRIC, (METRIC,), Bounds(20.0, 50.0), trials, len(trials), ("s1", "s2"), front=trials,
        references=[Reference("dense", DENSE, 101.0, measured=Measured(100.0, 99.0, 101.0))],
        held_out=[HeldOut(SPARSITY, 51.0, 50.0)], images_search=40, images_confirm=None,
    )  # fmt: skip


def test_nothing_is_said_where_all_agrees() -> None:
    assert differences(study(trial(0, 0.5, 30.0, 0.5, 30.2), trial(1, 0.6, 40.0, 0.6, 40.1), trial(2, 0.7, 45.0))) == []
    assert differences(study()) == []


def test_latencies_beyond_the_error_and_the_bounds() -> None:
    lines = differences(
        study(trial(0, 0.5, 20.1, 0.5, 19.0), trial(1, 0.6, 40.0, 0.6, 40.5), trial(2, 0.7, 49.0, 0.7, 51.5))
    )
    assert lines == [
        "trial 0 takes 19 ms as measured, 5.5% less than the predicted 20.1 ms and beyond the latency model's 2.0%; "
        "the measured one counts",
        "trial 2 takes 51.5 ms as measured, 5.1% more than the predicted 49 ms and beyond the latency model's 2.0%; "
        "the measured one counts",
        "trial 0 is out: 19 ms as measured are below the bound of 20 ms",
        "trial 2 is out: 51.5 ms as measured are above the bound of 50 ms",
    ]  # fmt: skip


def test_accuracies_on_more_images_and_who_is_beaten() -> None:
    lines = differences(
        study(trial(0, 0.5, 30.0, 0.49, 30.0), trial(1, 0.51, 40.0, 0.47, 40.0), trial(2, 0.7, 45.0, 0.66, 45.0))
    )
    assert lines == [
        "bbox_mAP on all images is 0.0300 lower in the mean than on the search's 40 images, give or take 0.0173 from "
        "trial to trial: a smaller lead in the search may be luck",
        "trial 1 of the front is beaten as confirmed: another is no slower and no less accurate",
    ]  # fmt: skip


def test_a_new_budget_takes_confirmed_trials_first_and_says_what_else_there_is() -> None:
    results = study(trial(0, 0.5, 30.0, 0.49, 30.0), trial(1, 0.6, 34.0), trial(2, 0.7, 45.0, 0.66, 45.0))
    assert bound_ms(results, Limit(0.35, is_share=True)) == pytest.approx(35.0)
    assert bound_ms(results, Limit(35.0)) == 35.0
    chosen = choose(results, max_ms=35.0)
    assert chosen.number == 0
    better = better_unconfirmed(results, chosen, 35.0)
    assert better is not None
    assert better.number == 1
    assert better_unconfirmed(results, chosen, 33.0) is None
    assert better_unconfirmed(results, results.trials[2], 50.0) is None
    assert better_unconfirmed(results, better, 50.0) is None
