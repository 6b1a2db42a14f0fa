"""The state of a search in a few figures, as of now."""

from __future__ import annotations

from datetime import datetime, timedelta

from sparsevit.dashboard.report import Fact
from sparsevit.dashboard.text import accuracy_text, figure_of, metric_label, ms_text
from sparsevit.search.results import StudyResults, TrialResult
from sparsevit.search.worker import is_dead

RECENT = 20
"""Finished trials that the rate is taken over."""


def facts(results: StudyResults) -> list[Fact]:
    """Progress, rate and time left, workers, failures, and the best configuration within the bounds."""
    working = [one for one in results.running if not is_dead(one.worker)]
    return [
        _progress(results),
        _rate(results, bool(working)),
        _workers(results, len(working), len({one.worker for one in working})),
        Fact(str(results.failed), "failed trials", "their configurations are tried again" if results.failed else ""),
        _best(results),
    ]


def share_done(results: StudyResults) -> float:
    """Finished trials over those asked for, at most 1."""
    return min(1.0, len(results.trials) / results.trials_asked) if results.trials_asked else 0.0


def per_minute(results: StudyResults) -> float | None:
    """Trials finished in a minute lately, by all workers together; `None` before there are two."""
    ends = sorted(one.started + timedelta(seconds=one.seconds) for one in results.trials if one.started is not None)
    ends = ends[-RECENT:]
    if len(ends) < 2 or ends[-1] <= ends[0]:
        return None
    return 60 * (len(ends) - 1) / (ends[-1] - ends[0]).total_seconds()


def _progress(results: StudyResults) -> Fact:
    return Fact(f"{len(results.trials)}", f"of {results.trials_asked} trials", f"{share_done(results):.0%} done")


def _rate(results: StudyResults, running: bool) -> Fact:
    rate = per_minute(results)
    if rate is None:
        return Fact("–", "trials a minute", "known after two trials")
    left = results.trials_asked - len(results.trials)
    if left <= 0:
        remark = "all trials that were asked for are done"
    elif running:
        remark = f"{_duration(60 * left / rate)} left, at {datetime.now() + timedelta(minutes=left / rate):%H:%M}"
    else:
        remark = f"{left} to go; nobody works on them"
    return Fact(f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}", "trials a minute", remark)


def _workers(results: StudyResults, trials: int, workers: int) -> Fact:
    gone = len(results.running) - trials
    remark = f"on {_trials(trials)}" if trials else "the search does not run now"
    left = f"; {_trials(gone)} {'was' if gone == 1 else 'were'} left behind" if gone else ""
    return Fact(str(workers), "worker" if workers == 1 else "workers", remark + left)


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _best(results: StudyResults) -> Fact:
    best = results.best
    if best is None:
        return Fact("none", "within the bounds yet", f"at most {ms_text(results.bounds.max_ms)} ms")
    value = figure_of(best.confirmed or best.accuracy, results.metric)
    return Fact(accuracy_text(value), f"best {metric_label(results.metric)}", _where(best))


def _where(best: TrialResult) -> str:
    if best.confirmed is not None and best.measured is not None:
        return f"{best.sparsity}, {ms_text(best.measured.median_ms)} ms measured, trial {best.number}"
    return f"{best.sparsity}, {ms_text(best.judged_ms)} ms, trial {best.number}, not confirmed"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
