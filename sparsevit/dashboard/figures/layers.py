"""What pruning each layer costs in accuracy and saves in latency, over all trials."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from sparsevit.dashboard.figures.style import BLUE, ORANGE, dress, note, sentence
from sparsevit.dashboard.text import figure_of, metric_label
from sparsevit.search.results import StudyResults

STEP = 0.1


def layer_sensitivity(results: StudyResults) -> go.Figure:
    """Points of accuracy lost, and ms saved, per 10 % of windows pruned in each layer.

    Both are slopes of one least-squares plane over all trials' ratios, so a layer's bar holds the other layers fixed.
    """
    trials = [one for one in results.trials if figure_of(one.accuracy, results.metric) is not None]
    ratios = np.array([[float(value) for value in one.sparsity.flat] for one in trials])
    names = [escape(name) for name in results.layer_names]
    design = np.column_stack([np.ones(len(trials)), ratios]) if trials else np.zeros((0, 0))
    # Fewer than twice as many trials as slopes say more about noise than about layers.
    if len(trials) < 2 * (len(names) + 1) or np.linalg.matrix_rank(design) < design.shape[1]:
        return sentence(f"Too few different trials yet to tell the {len(names)} layers apart.")
    accuracy = np.array([one.accuracy[results.metric] for one in trials])
    latency = np.array([one.predicted_ms for one in trials])
    slopes, *_ = np.linalg.lstsq(design, np.column_stack([accuracy, latency]), rcond=None)
    lost = -100 * STEP * slopes[1:, 0]
    saved = -STEP * slopes[1:, 1]
    drawn = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.1)
    label = f"points of {escape(metric_label(results.metric))} lost"
    _bars(drawn, names, lost, label, ORANGE, 1)
    _bars(drawn, names, saved, "ms saved", BLUE, 2)
    dress(drawn, height=140 + 34 * len(names))
    drawn.update_yaxes(autorange="reversed", type="category", showgrid=False)
    drawn.update_xaxes(title={"text": "points lost"}, row=1, col=1)
    drawn.update_xaxes(title={"text": "ms saved"}, row=1, col=2)
    drawn.update_layout(showlegend=False)
    explained = _explained(accuracy, design @ slopes[:, 0])
    note(drawn, f"per 10 % of a layer's windows; R² {explained:.2f}")
    return drawn


def _bars(drawn: go.Figure, names: list[str], values: NDArray[np.float64], name: str, colour: str, col: int) -> None:
    drawn.add_bar(
        x=values.tolist(), y=names, orientation="h", marker={"color": colour}, name=name,
        hovertemplate="%{y}: %{x:.3f} " + name + "<extra></extra>", row=1, col=col,
    )  # fmt: skip


def _explained(actual: NDArray[np.float64], fitted: NDArray[np.float64]) -> float:
    """The share of variance explained, R squared; 1 where nothing varies."""
    spread = float(((actual - actual.mean()) ** 2).sum())
    return 1 - float(((actual - fitted) ** 2).sum()) / spread if spread else 1.0
