"""Accuracy against latency: every trial, the front, what was confirmed, and the references."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from sparsevit.dashboard.figures.labels import label_positions
from sparsevit.dashboard.figures.published import IMAGES, PUBLISHED, unlike_paper
from sparsevit.dashboard.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axis_range,
    figure,
    hover_rows,
    hover_template,
    sentence,
)
from sparsevit.dashboard.text import figure_of, metric_label
from sparsevit.search.results import Reference, StudyResults, TrialResult


def front(results: StudyResults) -> go.Figure:
    """Accuracy (fraction) against latency (ms), the bounds shaded.

    Circles are predicted latencies with the accuracy of the search images; filled diamonds and squares are latencies
    measured on the target with the accuracy of the confirmation images. No trace holds both.
    """
    metric = results.metric
    trials = [trial for trial in results.trials if figure_of(trial.accuracy, metric) is not None]
    references = [one for one in results.references if figure_of(one.accuracy, metric) is not None]
    if not trials and not references:
        return sentence("No trial has finished yet: this figure fills as the search goes on.")
    drawn = figure(x="latency, ms", y=escape(metric_label(metric)), height=480)
    on_front = {trial.number for trial in results.front}
    feasible = [trial for trial in trials if trial.feasible and trial.number not in on_front]
    infeasible = [trial for trial in trials if not trial.feasible]
    line = sorted(results.front, key=lambda trial: trial.predicted_ms)
    best = results.best
    # Not all of these need be on the front: what is measured may turn out slower, and later trials may beat it.
    confirmed = [trial for trial in results.trials if trial.confirmed is not None and trial.measured is not None]
    if best in confirmed:
        confirmed.remove(best)

    _predicted(drawn, results, infeasible, "outside the bounds (predicted)", _marker(GREY, "x", 5))
    _predicted(drawn, results, feasible, "trials (predicted)", _marker(SKY, "circle", 7) | {"opacity": 0.65})
    _predicted(drawn, results, line, "front (predicted)", _marker(BLUE, "circle-open", 9), line=True)
    _measured(drawn, results, confirmed, "confirmed (measured)", _marker(VERMILION, "diamond", 10))
    if best is not None and best.confirmed is not None and best.measured is not None:
        _measured(drawn, results, [best], "best (measured)", _marker(ORANGE, "star", 17))
    elif best is not None:
        _predicted(drawn, results, [best], "best (predicted)", _marker(ORANGE, "star-open", 17))
    _references(drawn, results, [one for one in references if one.measured], "references (measured)", "square")
    _references(
        drawn, results, [one for one in references if not one.measured], "references (predicted)", "square-open"
    )
    if not unlike_paper(results):
        _published(drawn, results)
    drawn.update_layout(showlegend=True)  # a single kind of trials needs its name too
    low, high = _bounds(drawn, results)
    _place_labels(drawn, low, high)
    return drawn


def _marker(colour: str, symbol: str, size: int) -> dict[str, object]:
    outline = {"width": 2 if symbol.endswith("open") else 0.5, "color": colour if symbol.endswith("open") else "white"}
    return {"color": colour, "symbol": symbol, "size": size, "line": outline}


def _predicted(
    drawn: go.Figure, results: StudyResults, trials: Sequence[TrialResult], name: str, marker: dict[str, object],
    *, line: bool = False,
) -> None:  # fmt: skip
    trials = [trial for trial in trials if figure_of(trial.accuracy, results.metric) is not None]
    if trials:
        drawn.add_scatter(
            x=[trial.predicted_ms for trial in trials],
            y=[trial.accuracy[results.metric] for trial in trials],
            mode="lines+markers" if line else "markers",
            # The front is a staircase: between two of its points nothing better than the left one is known.
            line={"color": BLUE, "width": 1.5, "shape": "hv"} if line else None,
            marker=marker,
            name=name,
            customdata=hover_rows(results, [(f"trial {one.number}", one.sparsity, one.accuracy) for one in trials]),
            hovertemplate=hover_template(results, latency="predicted", images=results.images_search),
        )


def _measured(
    drawn: go.Figure, results: StudyResults, trials: Sequence[TrialResult], name: str, marker: dict[str, object]
) -> None:
    rows = [
        (trial, trial.confirmed, trial.measured)
        for trial in trials
        if trial.measured is not None and trial.confirmed and figure_of(trial.confirmed, results.metric) is not None
    ]
    if rows:
        drawn.add_scatter(
            x=[measured.median_ms for _, _, measured in rows],
            y=[accuracy[results.metric] for _, accuracy, _ in rows],
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
                "array": [measured.high_ms - measured.median_ms for _, _, measured in rows],
                "arrayminus": [measured.median_ms - measured.low_ms for _, _, measured in rows],
            },
            mode="markers",
            marker=marker,
            name=name,
            customdata=hover_rows(results, [(f"trial {one.number}", one.sparsity, acc) for one, acc, _ in rows]),
            hovertemplate=hover_template(results, latency="measured", images=results.images_confirm),
        )  # fmt: skip


def _references(
    drawn: go.Figure, results: StudyResults, references: Sequence[Reference], name: str, symbol: str
) -> None:
    if references:
        references = sorted(references, key=_reference_ms)
        latency = "predicted" if symbol.endswith("open") else "measured"
        unlike = unlike_paper(results)
        apart = f"the paper's results are not drawn: they are of {unlike}" if unlike else ""
        drawn.add_scatter(
            x=[_reference_ms(one) for one in references],
            y=[(one.accuracy or {})[results.metric] for one in references],
            mode="markers+text",
            marker=_marker(GREEN, symbol, 10),
            text=[escape(one.label) for one in references],
            cliponaxis=False,
            name=name,
            customdata=hover_rows(results, [(one.label, one.sparsity, one.accuracy or {}) for one in references]),
            hovertemplate=hover_template(results, latency=latency, images=results.images_confirm, last=apart),
        )


def _published(drawn: go.Figure, results: StudyResults) -> None:
    drawn.add_scatter(
        x=[one.ms for one in PUBLISHED],
        y=[one.accuracy[results.metric] for one in PUBLISHED],
        mode="markers+text",
        marker=_marker(PURPLE, "triangle-up", 10),
        text=[one.label for one in PUBLISHED],
        cliponaxis=False,
        name="published (finetuned)",
        customdata=hover_rows(results, [(one.label, one.sparsity, one.accuracy) for one in PUBLISHED]),
        hovertemplate=hover_template(results, latency="published", images=IMAGES),
    )


def _reference_ms(reference: Reference) -> float:
    return reference.measured.median_ms if reference.measured else reference.predicted_ms


def _place_labels(drawn: go.Figure, low: float, high: float) -> None:
    points = [point for trace in drawn.data for point in zip(trace.x, trace.y, strict=True)]
    accuracies = [y for _, y in points]
    bottom, top = axis_range(accuracies)
    for trace in drawn.data:
        if trace.text is not None:
            labelled = list(zip(trace.x, trace.y, strict=True))
            others = [point for point in points if point not in labelled]
            trace.textposition = label_positions(trace.text, labelled, others, (low, high), (bottom, top))


def _bounds(drawn: go.Figure, results: StudyResults) -> tuple[float, float]:
    """Shade the latencies within the bounds; returns the axis's range, which no absent lower bound stretches."""
    bounds = results.bounds
    shown = [x for trace in drawn.data for x in trace.x]
    limits = [bounds.max_ms] + ([bounds.min_ms] if bounds.min_ms > 0 else [])
    low, high = axis_range([*shown, *limits])
    drawn.update_xaxes(range=[low, high])
    drawn.add_vrect(
        x0=max(bounds.min_ms, low), x1=min(bounds.max_ms, high),
        fillcolor=GREEN, opacity=0.1, line_width=0, layer="below", name="bounds",
    )  # fmt: skip
    for limit in limits:
        drawn.add_vline(x=limit, line={"color": GREEN, "width": 1, "dash": "dash"}, layer="below", name="bound")
    # Beyond the bound there are few points, and fewer of low accuracy.
    room = high - bounds.max_ms > 0.06 * (high - low)
    drawn.add_annotation(
        text=f"bound {bounds.max_ms:.4g} ms", x=bounds.max_ms, y=0, yref="paper", textangle=-90,
        xanchor="left" if room else "right", yanchor="bottom", showarrow=False, font={"size": 11},
    )  # fmt: skip
    return low, high
