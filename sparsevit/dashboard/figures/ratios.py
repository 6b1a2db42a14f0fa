"""Which share of windows each layer prunes, along the front."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from sparsevit.dashboard.figures.style import dress, sentence
from sparsevit.dashboard.text import accuracy_text, figure_of, metric_label, ms_text, ratio_text
from sparsevit.search.results import StudyResults

# Pale to vermilion with rising darkness in grey as well; black reads well on every one of them.
SCALE = [[0, "#FFF8E8"], [0.35, "#F7CF74"], [0.7, "#E69F00"], [1, "#D55E00"]]
MAX_TICKS = 12
MAX_WRITTEN = 40


def ratios_along_front(results: StudyResults) -> go.Figure:
    """Heat map of pruning ratios: a row per layer, a column per trial of the front, fastest first.

    Every cell carries its ratio, as long as there are few enough columns to read them.
    """
    trials = sorted(results.front, key=lambda trial: trial.predicted_ms)
    if not trials:
        return sentence("No trial within the bounds yet: the ratios along the front will stand here.")
    ratios = list(zip(*(trial.sparsity.flat for trial in trials), strict=True))
    label = escape(metric_label(results.metric))
    columns = [
        f"trial {trial.number}: {trial.sparsity}<br>predicted {ms_text(trial.predicted_ms)} ms, "
        f"{label} {accuracy_text(figure_of(trial.accuracy, results.metric))}"
        for trial in trials
    ]
    drawn = go.Figure(
        go.Heatmap(
            z=[[float(value) for value in row] for row in ratios],
            x=list(range(len(trials))),
            y=[escape(name) for name in results.layer_names],
            text=[[ratio_text(value) for value in row] for row in ratios],
            texttemplate="%{text}" if len(trials) <= MAX_WRITTEN else None,
            # One row of texts for all layers would do, but plotly wants the shape of z.
            hovertext=[columns] * len(ratios),
            hovertemplate="%{y}: ratio %{z}<br>%{hovertext}<extra></extra>",
            zmin=0,
            zmax=max(0.8, *(float(value) for row in ratios for value in row)),
            colorscale=SCALE,
            textfont={"color": "black"},
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "ratio"}, "thickness": 12, "outlinewidth": 0, "tickformat": ".1f"},
        )
    )
    dress(drawn, height=120 + 36 * len(ratios))
    every = -(-len(trials) // MAX_TICKS)
    ticks = range(0, len(trials), every)
    drawn.update_xaxes(
        title={"text": "predicted latency, ms"}, showgrid=False,
        tickvals=list(ticks), ticktext=[ms_text(trials[i].predicted_ms) for i in ticks],
    )  # fmt: skip
    drawn.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return drawn
