"""How far the latency model can be trusted: its predictions against measurements it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from sparsevit.dashboard.figures.style import BLUE, GREEN, GREY, VERMILION, axis_range, figure, sentence
from sparsevit.search.results import Measured, StudyResults


@dataclass(frozen=True)
class _Point:
    text: str
    predicted_ms: float
    measured: Measured


def predicted_vs_measured(results: StudyResults) -> go.Figure:
    """Measured against predicted latency (ms) of held-out, confirmed and reference configurations, with the errors.

    The error of a configuration is `|predicted - measured| / measured`.
    """
    groups = {
        "held out": [
            _Point(str(one.sparsity), one.predicted_ms, Measured(one.measured_ms, one.measured_ms, one.measured_ms))
            for one in results.held_out
        ],
        "confirmed": [
            _Point(f"trial {one.number}: {one.sparsity}", one.predicted_ms, one.measured)
            for one in results.trials
            if one.measured is not None
        ],
        "references": [
            _Point(str(one.sparsity), one.predicted_ms, one.measured)
            for one in results.references
            if one.measured is not None
        ],
    }
    groups = {name: points for name, points in groups.items() if points}
    if not groups:
        return sentence("Nothing has been measured yet: predictions and measurements will stand here.")
    drawn = figure(x="predicted, ms", y="measured, ms")
    every = [ms for points in groups.values() for one in points for ms in (one.predicted_ms, one.measured.median_ms)]
    low, high = axis_range(every)
    drawn.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": GREY, "dash": "dash", "width": 1},
        name="identity", hoverinfo="skip",
    )  # fmt: skip
    looks = {"held out": (BLUE, "circle-open"), "confirmed": (VERMILION, "diamond"), "references": (GREEN, "square")}
    for name, points in groups.items():
        _add(drawn, name, points, *looks[name])
    drawn.update_xaxes(range=[low, high])
    drawn.update_yaxes(range=[low, high])
    return drawn


def _add(drawn: go.Figure, name: str, points: list[_Point], colour: str, symbol: str) -> None:
    drawn.add_scatter(
        x=[one.predicted_ms for one in points],
        y=[one.measured.median_ms for one in points],
        error_y={
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
            "array": [one.measured.high_ms - one.measured.median_ms for one in points],
            "arrayminus": [one.measured.median_ms - one.measured.low_ms for one in points],
        },
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 9},
        name=_errors(name, points),
        customdata=[one.text for one in points],
        hovertemplate="%{customdata}<br>predicted %{x:.2f} ms<br>measured %{y:.2f} ms<extra></extra>",
    )  # fmt: skip


def _errors(name: str, points: list[_Point]) -> str:
    errors = [abs(one.predicted_ms - one.measured.median_ms) / one.measured.median_ms for one in points]
    return f"{name} ({len(errors)}): error {sum(errors) / len(errors):.1%} mean, {max(errors):.1%} max"
