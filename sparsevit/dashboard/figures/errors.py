"""How far the latency model was off, by latency and over time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from sparsevit.dashboard.figures.style import BLUE, GREEN, GREY, SKY, VERMILION, axis_range, figure, note, sentence
from sparsevit.search.results import Measured, StudyResults, Taken

_Point = tuple[str, float, float]
"""What it is, measured ms, and the error of its prediction: a fraction of the measured."""


def latency_errors(results: StudyResults) -> go.Figure:
    """Error of the prediction (predicted less measured, in percent of measured) by measured latency (ms).

    Cells are what the model was fitted to; only the others say how well it predicts.
    """
    groups: dict[str, tuple[list[_Point], str, str]] = {
        "cells (fitted to)": (
            [_point(str(one.sparsity), one.predicted_ms, one.measured) for one in results.timings if _is_cell(one)],
            SKY, "circle-open",
        ),
        "held out": (
            [
                (str(one.sparsity), one.measured_ms, one.predicted_ms / one.measured_ms - 1)
                for one in results.held_out
            ],
            BLUE, "circle",
        ),
        "confirmed": (
            [
                _point(f"trial {one.number}: {one.sparsity}", one.predicted_ms, one.measured)
                for one in results.trials
                if one.measured is not None
            ],
            VERMILION, "diamond",
        ),
    }  # fmt: skip
    groups = {name: group for name, group in groups.items() if group[0]}
    if not groups:
        return sentence("Nothing has been measured yet: the latency model's errors will stand here.")
    drawn = figure(x="measured, ms", y="error of the prediction")
    for name, (points, colour, symbol) in groups.items():
        mean = sum(abs(error) for _, _, error in points) / len(points)
        drawn.add_scatter(
            x=[ms for _, ms, _ in points],
            y=[error for _, _, error in points],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            name=f"{name} ({len(points)}): {mean:.1%} mean",
            text=[escape(text) for text, _, _ in points],
            hovertemplate="%{text}<br>measured %{x:.2f} ms, predicted %{y:+.1%}<extra></extra>",
        )
    drawn.update_xaxes(range=axis_range([ms for points, *_ in groups.values() for _, ms, _ in points]))
    return _around_zero(drawn)


def drift(results: StudyResults) -> go.Figure:
    """Measured latencies over time, each against what the model says of its configuration (percent more or less).

    A machine that stays the same scatters around 0; one that slows down climbs.
    """
    taken = [one for one in results.timings if one.at is not None]
    if len(taken) < 2:
        return sentence("Too few latencies have been measured yet to see a drift.")
    drawn = figure(x="time (UTC)", y="measured less predicted")
    for name, group, colour, symbol in (
        ("cells (fitted to)", [one for one in taken if one.fitted], SKY, "circle-open"),
        ("others", [one for one in taken if not one.fitted], VERMILION, "diamond"),
    ):
        if group:
            drawn.add_scatter(
                x=[one.at for one in group],
                y=[one.measured.median_ms / one.predicted_ms - 1 for one in group],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                name=f"{name} ({len(group)})",
                text=[str(one.sparsity) for one in group],
                hovertemplate="%{text}<br>%{x}: %{y:+.1%}<extra></extra>",
            )
    note(drawn, _trend(taken))
    return _around_zero(drawn)


def _trend(taken: Sequence[Taken]) -> str:
    """The median of the last half against that of the first, in words."""
    errors = [one.measured.median_ms / one.predicted_ms - 1 for one in taken]
    half = len(errors) // 2
    change = _median(errors[half:]) - _median(errors[:half])
    return f"later half against the earlier: {change:+.1%}"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _is_cell(one: Taken) -> bool:
    return one.fitted and one.at is None


def _point(text: str, predicted_ms: float, measured: Measured) -> _Point:
    return text, measured.median_ms, predicted_ms / measured.median_ms - 1


def _around_zero(drawn: go.Figure) -> go.Figure:
    most = max([0.02, *(abs(float(value)) for trace in drawn.data for value in trace.y)])
    drawn.update_yaxes(tickformat="+.0%", range=[-1.15 * most, 1.15 * most])
    drawn.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dash"}, layer="below")
    drawn.add_hrect(y0=-0.02, y1=0.02, fillcolor=GREEN, opacity=0.08, line_width=0, layer="below")
    return drawn
