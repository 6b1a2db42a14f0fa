"""The fronts of several studies; latencies of different targets never share an axis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsevit.dashboard.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    dress,
    hover_rows,
    hover_template,
    sentence,
)
from sparsevit.dashboard.text import figure_of, metric_label
from sparsevit.search.results import StudyResults

_LOOKS = tuple(zip((BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY), ("solid", "dash", "dot") * 2, strict=True))
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def compare(studies: Mapping[str, StudyResults]) -> go.Figure:
    """The front of each study by name, accuracy against predicted latency; one chart per target and metric.

    Confirmed trials, at their measured latency, are filled.
    """
    shown = {name: one for name, one in studies.items() if one.front}
    if not shown:
        return sentence("None of these studies has a trial within its bounds yet.")
    kinds = sorted({(one.target, one.metric) for one in shown.values()})
    # A phone is no wider than so many letters.
    titles = ["<br>".join(map(escape, textwrap.wrap(target, 44))) for target, _ in kinds]
    drawn = make_subplots(rows=len(kinds), cols=1, subplot_titles=titles, vertical_spacing=0.35 / len(kinds))
    for place, (name, results) in enumerate(shown.items()):
        row = kinds.index((results.target, results.metric)) + 1
        _draw(drawn, name, results, place, row)
    for row, (_, metric) in enumerate(kinds, 1):
        drawn.update_xaxes(title={"text": "latency, ms"}, row=row, col=1)
        drawn.update_yaxes(title={"text": escape(metric_label(metric))}, row=row, col=1)
    dress(drawn, height=120 + 380 * len(kinds))
    drawn.update_layout(legend={"y": 1 + 0.08 / len(kinds)}, margin={"t": 30})
    drawn.update_annotations(font={"size": 12})
    return drawn


def _draw(drawn: go.Figure, name: str, results: StudyResults, place: int, row: int) -> None:
    colour, dash = _LOOKS[place % len(_LOOKS)]
    symbol = _SYMBOLS[place % len(_SYMBOLS)]
    line = sorted(results.front, key=lambda one: one.predicted_ms)
    label = escape(name)
    drawn.add_scatter(
        x=[one.predicted_ms for one in line],
        y=[one.accuracy[results.metric] for one in line],
        mode="lines+markers",
        line={"color": colour, "dash": dash, "shape": "hv", "width": 1.5},
        marker={"color": colour, "symbol": f"{symbol}-open", "size": 8},
        name=f"{label} (predicted)",
        legendgroup=name,
        customdata=hover_rows(results, [(f"{name}, trial {one.number}", one.sparsity, one.accuracy) for one in line]),
        hovertemplate=hover_template(results, latency="predicted", images=results.images_search),
        row=row, col=1,
    )  # fmt: skip
    confirmed = [
        (one, one.confirmed, one.measured)
        for one in results.trials
        if one.confirmed and one.measured and figure_of(one.confirmed, results.metric) is not None
    ]
    if confirmed:
        rows = [(f"{name}, trial {one.number}", one.sparsity, accuracy) for one, accuracy, _ in confirmed]
        drawn.add_scatter(
            x=[measured.median_ms for _, _, measured in confirmed],
            y=[accuracy[results.metric] for _, accuracy, _ in confirmed],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            name=f"{label} (measured)",
            legendgroup=name,
            customdata=hover_rows(results, rows),
            hovertemplate=hover_template(results, latency="measured", images=results.images_confirm),
            row=row, col=1,
        )  # fmt: skip
