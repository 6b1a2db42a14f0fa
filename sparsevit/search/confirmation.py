"""What confirming the front has changed, in words: latencies beyond the model's stated error, and accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from sparsevit.search.results import StudyResults, TrialResult
from sparsevit.search.selection import surprises


def differences(results: StudyResults) -> list[str]:
    """One sentence for each thing that searching and confirming see differently; nothing where they agree.

    The stated error of latencies is the largest that the latency model made on held-out configurations. Accuracies of
    fewer images state none: what is said is how far they lie from those of the images that confirm, and which trials of
    the front no longer belong to it.
    """
    confirmed = [one for one in results.front if one.confirmed is not None and one.measured is not None]
    return [*_latencies(results, confirmed), *_bounds(results, confirmed), *_accuracies(results, confirmed)]


def _latencies(results: StudyResults, confirmed: Sequence[TrialResult]) -> list[str]:
    error = max((abs(one.predicted_ms / one.measured_ms - 1) for one in results.held_out), default=0.0)
    lines = []
    for one in surprises(confirmed, error):
        assert one.measured is not None
        share = one.measured.median_ms / one.predicted_ms - 1
        lines.append(
            f"trial {one.number} takes {one.measured.median_ms:.4g} ms as measured, {abs(share):.1%} "
            f"{'more' if share > 0 else 'less'} than the predicted {one.predicted_ms:.4g} ms and beyond the latency "
            f"model's {error:.1%}; the measured one counts"
        )
    return lines


def _bounds(results: StudyResults, confirmed: Sequence[TrialResult]) -> list[str]:
    bounds = results.bounds
    lines = []
    for one in confirmed:
        assert one.measured is not None
        ms = one.measured.median_ms
        if not bounds.contains(ms):
            side, bound = ("above", bounds.max_ms) if ms > bounds.max_ms else ("below", bounds.min_ms)
            lines.append(f"trial {one.number} is out: {ms:.4g} ms as measured are {side} the bound of {bound:.4g} ms")
    return lines


def _accuracies(results: StudyResults, confirmed: Sequence[TrialResult]) -> list[str]:
    metric = results.metric
    pairs = [(one.accuracy[metric], one.confirmed[metric]) for one in confirmed if one.confirmed is not None]
    shifts = [after - before for before, after in pairs]
    if len(shifts) < 2 or not any(shifts):
        return []
    mean, spread = fmean(shifts), stdev(shifts)
    side = "higher" if mean > 0 else "lower"
    lines = [
        f"{metric} on {_images(results.images_confirm)} is {abs(mean):.4f} {side} in the mean than on the search's "
        f"{_images(results.images_search)}, give or take {spread:.4f} from trial to trial: a smaller lead in the "
        "search may be luck"
    ]
    beaten = [str(one.number) for one in confirmed if any(_beats(other, one, metric) for other in confirmed)]
    if beaten:
        lines.append(
            f"{'trial' if len(beaten) == 1 else 'trials'} {', '.join(beaten)} of the front "
            f"{'is' if len(beaten) == 1 else 'are'} beaten as confirmed: another is no slower and no less accurate"
        )
    return lines


def _beats(one: TrialResult, other: TrialResult, metric: str) -> bool:
    assert one.confirmed is not None
    assert one.measured is not None
    assert other.confirmed is not None
    assert other.measured is not None
    mine, theirs = one.confirmed[metric], other.confirmed[metric]
    fast, slow = one.measured.median_ms, other.measured.median_ms
    return mine >= theirs and fast <= slow and (mine, fast) != (theirs, slow)


def _images(count: int | None) -> str:
    return "all images" if count is None else f"{count} images"
