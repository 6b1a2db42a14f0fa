"""How the search went: each trial, the best so far, and the hypervolume of the front, over trials."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from html import escape
from itertools import accumulate

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsevit.dashboard.figures.style import BLUE, GREY, PURPLE, SKY, dress, note, sentence
from sparsevit.dashboard.text import figure_of, metric_label
from sparsevit.search.results import StudyResults, TrialResult


def progress(results: StudyResults) -> go.Figure:
    """Above: accuracy of every trial, and the best within the bounds so far. Below: the hypervolume so far.

    The hypervolume is the share of the box (0 to the upper bound in ms, accuracy 0 to 1) that the feasible trials
    dominate; with predicted latencies and the accuracy of the search images.
    """
    trials = sorted(
        (one for one in results.trials if figure_of(one.accuracy, results.metric) is not None),
        key=lambda one: one.number,
    )
    if not trials:
        return sentence("No trial has finished yet: the search's progress will stand here.")
    feasible = [one for one in trials if one.feasible]
    rows = 2 if feasible else 1
    drawn = make_subplots(rows=rows, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4][:rows], vertical_spacing=0.06)
    _add_trials(drawn, results, feasible, "within the bounds", {"color": SKY, "size": 7})
    outside = [one for one in trials if not one.feasible]
    _add_trials(drawn, results, outside, "outside the bounds", {"color": GREY, "size": 5, "symbol": "x"})
    dress(drawn, height=260 * rows)
    if feasible:
        _add_history(drawn, results, feasible, last=trials[-1].number)
        drawn.update_yaxes(title={"text": "hypervolume"}, row=2, col=1)
    else:
        note(drawn, "No trial within the bounds yet.")
    drawn.update_yaxes(title={"text": escape(metric_label(results.metric))}, row=1, col=1)
    drawn.update_xaxes(title={"text": "trial"}, row=rows, col=1)
    return drawn


def hypervolumes(points: Iterable[tuple[float, float]], max_ms: float) -> list[float]:
    """The share of the box `[0, max_ms] x [0, 1]` dominated by (latency in ms, accuracy) points, after each of them.

    Points slower than `max_ms` dominate nothing of it.
    """
    latencies: list[float] = []  # the front so far: latencies and accuracies both increase
    accuracies: list[float] = []
    volume, volumes = 0.0, []
    for latency, accuracy in points:
        slower = bisect_right(latencies, latency)
        beaten = slower > 0 and accuracies[slower - 1] >= accuracy
        if latency < max_ms and not beaten:
            start = end = bisect_left(latencies, latency)
            left, floor = latency, accuracies[start - 1] if start else 0.0
            # What is new lies above the old staircase, step by step, up to the first point that is better.
            while end < len(latencies) and accuracies[end] <= accuracy:
                volume += (latencies[end] - left) * (accuracy - floor)
                left, floor = latencies[end], accuracies[end]
                end += 1
            right = latencies[end] if end < len(latencies) else max_ms
            volume += (right - left) * (accuracy - floor)
            latencies[start:end], accuracies[start:end] = [latency], [accuracy]
        volumes.append(volume / max_ms)
    return volumes


def _add_trials(
    drawn: go.Figure, results: StudyResults, trials: list[TrialResult], name: str, marker: dict[str, object]
) -> None:
    if trials:
        drawn.add_scatter(
            x=[one.number for one in trials],
            y=[one.accuracy[results.metric] for one in trials],
            mode="markers",
            marker=marker,
            opacity=0.8,
            name=name,
            customdata=[[str(one.sparsity), one.predicted_ms] for one in trials],
            hovertemplate="trial %{x}: %{customdata[0]}<br>%{y:.3f}, predicted %{customdata[1]:.2f} ms<extra></extra>",
            row=1,
            col=1,
        )


def _add_history(drawn: go.Figure, results: StudyResults, trials: list[TrialResult], *, last: int) -> None:
    """The best and the hypervolume after each feasible trial, drawn on to the `last` trial of all."""
    accuracies = [one.accuracy[results.metric] for one in trials]
    points = zip((one.predicted_ms for one in trials), accuracies, strict=True)
    best = list(accumulate(accuracies, max))
    volumes = hypervolumes(points, results.bounds.max_ms)
    numbers = [*(one.number for one in trials), last]
    for row, name, values, colour in ((1, "best so far", best, BLUE), (2, "hypervolume", volumes, PURPLE)):
        drawn.add_scatter(
            x=numbers, y=[*values, values[-1]], mode="lines", line={"color": colour, "width": 2, "shape": "hv"},
            name=name, hovertemplate=f"{name}, up to trial %{{x}}: %{{y:.4f}}<extra></extra>", row=row, col=1,
        )  # fmt: skip
