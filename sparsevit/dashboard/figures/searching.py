"""What the search spared itself, how long trials took, and which worker did which."""

from __future__ import annotations

from html import escape
from itertools import accumulate

import plotly.graph_objects as go

from sparsevit.dashboard.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, figure, note, sentence
from sparsevit.dashboard.text import figure_of
from sparsevit.search.results import StudyResults, TrialResult
from sparsevit.search.worker import worker_label

_WORKERS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
MOST_BARS = 600
"""Trials that a timeline shows one by one; of more, as many of the latest."""


def avoided(results: StudyResults) -> go.Figure:
    """Configurations that were drawn and not paid for, over trials: outside the bounds, and known already."""
    trials = _in_order(results)
    if not trials:
        return sentence("No trial has finished yet: what the search did not have to pay for will stand here.")
    if not any(one.infeasible or one.duplicates for one in trials):
        return sentence("The sampler drew nothing that misses the bounds or was known: there was nothing to spare.")
    drawn = figure(x="trial", y="not evaluated, in all")
    numbers = [one.number for one in trials]
    for name, counts, colour in (
        ("outside the bounds", [one.infeasible for one in trials], ORANGE),
        ("known already", [one.duplicates for one in trials], BLUE),
    ):
        drawn.add_scatter(
            x=numbers, y=list(accumulate(counts)), mode="lines", line={"color": colour, "shape": "hv", "width": 2},
            name=f"{name} ({sum(counts)})", hovertemplate="%{y} up to trial %{x}<extra></extra>",
        )  # fmt: skip
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def time_per_trial(results: StudyResults) -> go.Figure:
    """Seconds of evaluation of each trial, and their running median; those known from an earlier one cost none."""
    trials = _in_order(results)
    if not trials:
        return sentence("No trial has finished yet: the time of each will stand here.")
    drawn = figure(x="trial", y="seconds")
    seconds = [one.seconds for one in trials]
    numbers = [one.number for one in trials]
    drawn.add_scatter(
        x=numbers, y=seconds, mode="markers", name="a trial", marker={"color": SKY, "size": 6},
        hovertemplate="trial %{x}: %{y:.2f} s<extra></extra>",
    )  # fmt: skip
    reach = max(2, len(trials) // 40)
    medians = [sorted(around)[len(around) // 2] for around in _around(seconds, reach)]
    drawn.add_scatter(
        x=numbers, y=medians, mode="lines", name=f"median of {2 * reach + 1}", line={"color": BLUE, "width": 2},
        hoverinfo="skip",
    )  # fmt: skip
    note(drawn, f"{sum(seconds) / 60:.1f} min of evaluation in all")
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def timeline(results: StudyResults) -> go.Figure:
    """When each worker evaluated which trial; gaps are other work: measuring, sampling, waiting."""
    trials = [one for one in _in_order(results) if one.started is not None]
    if not trials:
        return sentence("No trial has finished yet: the workers' times will stand here.")
    shown = trials[-MOST_BARS:]
    workers = sorted({one.worker or "unknown" for one in shown})
    short = [worker_label(worker) for worker in workers]
    labels = [
        escape(label if short.count(label) == 1 else worker) for worker, label in zip(workers, short, strict=True)
    ]
    drawn = figure(x="time", y="", height=150 + 34 * len(workers))
    for place, (worker, label) in enumerate(zip(workers, labels, strict=True)):
        own = [one for one in shown if (one.worker or "unknown") == worker]
        drawn.add_bar(
            base=[one.started.isoformat() for one in own if one.started],
            x=[1000 * max(one.seconds, 0.05) for one in own],  # plotly counts dates in milliseconds
            y=[label] * len(own),
            orientation="h",
            marker={"color": _WORKERS[place % len(_WORKERS)], "line": {"width": 0}},
            name=label,
            text=[f"trial {one.number}, {one.seconds:.1f} s" for one in own],
            textposition="none",
            hovertemplate="%{text}<br>%{base}<extra></extra>",
        )
    drawn.update_xaxes(type="date")
    drawn.update_yaxes(type="category", showgrid=False)
    drawn.update_layout(showlegend=False, barmode="overlay")
    if len(shown) < len(trials):
        drawn.add_vline(
            x=shown[0].started.isoformat() if shown[0].started else None,
            line={"color": GREY, "dash": "dash", "width": 1},
        )
        note(drawn, f"the latest {len(shown)} of {len(trials)} trials")
    return drawn


def _in_order(results: StudyResults) -> list[TrialResult]:
    known = [one for one in results.trials if figure_of(one.accuracy, results.metric) is not None]
    return sorted(known, key=lambda one: one.number)


def _around(values: list[float], reach: int) -> list[list[float]]:
    return [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
