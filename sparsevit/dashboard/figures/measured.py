"""Measured latencies of some sparsities on one or several targets."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sparsevit.dashboard.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, figure
from sparsevit.latency.comparison import Comparison, Row

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)


def measured_latencies(comparisons: Sequence[Comparison]) -> go.Figure:
    """Latency (ms, with 95 % intervals) by sparsity, one row of bars for each and one colour for each target."""
    height = 140 + 26 * sum(len(one.rows) for one in comparisons)
    drawn = figure(x="ms per batch", y="", height=height)
    for number, one in enumerate(comparisons):
        _add(drawn, one, COLOURS[number % len(COLOURS)])
    drawn.update_layout(barmode="group", bargap=0.25)
    drawn.update_xaxes(rangemode="tozero")
    drawn.update_yaxes(autorange="reversed")
    return drawn


def _add(drawn: go.Figure, one: Comparison, colour: str) -> None:
    drawn.add_bar(
        orientation="h",
        y=[label(row) for row in one.rows],
        x=[row.ms for row in one.rows],
        error_x={
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
            "array": [row.high_ms - row.ms for row in one.rows],
            "arrayminus": [row.ms - row.low_ms for row in one.rows],
        },
        marker={"color": colour},
        name=str(one.target),
        customdata=[[row.speedup, row.windows_kept] for row in one.rows],
        hovertemplate="%{y}<br>%{x:.4g} ms, %{customdata[0]:.2f}× dense, %{customdata[1]:.1%} of windows"
        "<extra>%{fullData.name}</extra>",
    )  # fmt: skip


def label(row: Row) -> str:
    """A sparsity as an axis names it."""
    return "dense" if row.sparsity.is_dense else str(row.sparsity)
