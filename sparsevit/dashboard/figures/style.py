"""What all figures share: colours that everyone can tell apart, a layout for light and dark paper, hover texts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from sparsevit.dashboard.text import metric_label, shown_metrics
from sparsevit.search.results import StudyResults
from sparsevit.sparsity import Sparsity

# Okabe and Ito's palette, without black, which vanishes on dark paper.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8A8A8A"

# Greys with the same contrast to white and to near-black; a page that knows its theme may set `font.color` sharper.
INK = "#7D7D7D"
GRID = "rgba(128,128,128,0.22)"
CLEAR = "rgba(0,0,0,0)"

HEIGHT = 440


def figure(*, x: str, y: str, height: int = HEIGHT) -> go.Figure:
    """An empty figure with axis titles, transparent paper and a legend above that wraps by itself."""
    return dress(go.Figure(layout={"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}), height)


def dress(drawn: go.Figure, height: int = HEIGHT) -> go.Figure:
    """Give a figure the common look; returns it."""
    drawn.update_layout(
        template="none",
        height=height,
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": CLEAR},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": CLEAR, "color": INK, "activecolor": BLUE},
        dragmode="pan",
    )
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True}
    drawn.update_xaxes(**axis)
    drawn.update_yaxes(**axis)
    return drawn


def sentence(text: str) -> go.Figure:
    """What stands where there is nothing to draw yet."""
    drawn = dress(go.Figure(), height=160)
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    wrapped = "<br>".join(textwrap.wrap(escape(text), 42))
    drawn.add_annotation(text=wrapped, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 15})
    return drawn


def note(drawn: go.Figure, line: str) -> None:
    """A short line above a figure without a legend, for what must be read with it."""
    drawn.update_layout(
        title={
            "text": line, "font": {"size": 13}, "x": 0, "xref": "paper", "xanchor": "left",
            "yref": "container", "y": 1, "yanchor": "top", "automargin": True, "pad": {"t": 4, "b": 6},
        }
    )  # fmt: skip


def hover_rows(
    results: StudyResults, points: Sequence[tuple[str, Sparsity, Mapping[str, float]]]
) -> list[list[str | float | None]]:
    """`customdata` of points (name, sparsity, metrics) for `hover_template`: compact, for many thousands of them."""
    _, *others = shown_metrics(results.metric, results.metrics)
    return [
        [
            escape(name), str(sparsity),
            *(float(value) for value in sparsity.flat), *(metrics.get(metric) for metric in others), bars(sparsity),
        ]
        for name, sparsity, metrics in points
    ]  # fmt: skip


def bars(sparsity: Sparsity) -> str:
    """A configuration as a small bar picture in one word: a bar per layer, the higher the more it skips."""
    heights = "▁▂▃▄▅▆▇█"
    top = len(heights) - 1
    return " ".join(
        "".join(heights[min(top, round(float(value) * (top + 1.5)))] for value in stage) for stage in sparsity.stages
    )


def hover_template(results: StudyResults, *, latency: str, images: int | None, last: str = "") -> str:
    """Shows the configuration, its ratios by layer, every metric, the latency named by `latency`, and a `last` line."""
    layers = [f"{escape(name)} %{{customdata[{i}]}}" for i, name in enumerate(results.layer_names, 2)]
    _, *others = shown_metrics(results.metric, results.metrics)
    seen = f" ({images} images)" if images else ""
    lines = [
        "<b>%{customdata[0]}</b>: %{customdata[1]}",
        *(" · ".join(layers[i : i + 4]) for i in range(0, len(layers), 4)),
        f"{escape(metric_label(results.metric))} %{{y:.3f}}{seen}",
        *(
            f"{escape(metric_label(metric))} %{{customdata[{i}]:.3f}}"
            for i, metric in enumerate(others, 2 + len(layers))
        ),
        f"{latency} %{{x:.2f}} ms",
        # Lines are as far apart as the text is high: larger bars would stand in the line above.
        f'<span style="font-size:16px">%{{customdata[{2 + len(layers) + len(others)}]}}</span>',
        *([escape(last)] if last else []),
    ]
    return "<br>".join(lines) + "<extra></extra>"


def axis_range(values: Sequence[float], pad: float = 0.06) -> list[float]:
    """A range around `values` with a share `pad` of room at both ends; never empty, never below 0."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * pad
    return [max(0.0, low - room), high + room]
