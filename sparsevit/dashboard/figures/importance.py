"""How much of what trials differ in comes from each layer's ratio, for accuracy and for latency."""

from __future__ import annotations

import random
from collections.abc import Sequence
from html import escape
from itertools import permutations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sparsevit.dashboard.figures.style import BLUE, ORANGE, figure, note, sentence
from sparsevit.dashboard.text import figure_of, metric_label
from sparsevit.search.results import StudyResults

ORDERS = 200
"""Orders of layers that are averaged over where there are more than can all be tried."""


def importance(results: StudyResults) -> go.Figure:
    """Bars by layer: the share (fraction) of the variance over trials that its ratio explains, for both objectives."""
    trials = [one for one in results.trials if figure_of(one.accuracy, results.metric) is not None]
    names = [escape(name) for name in results.layer_names]
    if len(trials) < 4 * len(names):
        return sentence(f"Too few trials yet to tell the importance of {len(names)} layers.")
    ratios = np.array([[float(value) for value in one.sparsity.flat] for one in trials])
    drawn = figure(x="share of the variance explained", y="", height=170 + 40 * len(names))
    explained = []
    metric = escape(metric_label(results.metric))
    of_latency = "measured latency" if any(one.searched_ms is not None for one in trials) else "predicted latency"
    for name, values, colour in (
        (metric, [one.accuracy[results.metric] for one in trials], ORANGE),
        (of_latency, [one.judged_ms for one in trials], BLUE),
    ):
        shares = explained_shares(ratios, np.array(values))
        explained.append(f"{name} {shares.sum():.0%}")
        drawn.add_bar(
            x=shares.tolist(), y=names, orientation="h", name=name, marker={"color": colour},
            hovertemplate="%{y}: %{x:.1%} of " + name + "<extra></extra>",
        )  # fmt: skip
    drawn.update_yaxes(autorange="reversed", type="category", showgrid=False)
    drawn.update_xaxes(tickformat=".0%", rangemode="tozero")
    drawn.update_layout(barmode="group")
    note(drawn, f"in all: {', '.join(explained)}")
    return drawn


def explained_shares(inputs: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the variance of `values` that each column of `inputs` explains, shape `(columns,)`.

    Each column enters a least-squares fit with its value and its square; its share is what R² gains when it joins,
    averaged over the orders in which columns can join (Lindeman, Merenda and Gold, 1980). They sum to the R² of all.
    """
    count = inputs.shape[1]
    spread = values - values.mean()
    total = float(spread @ spread)
    if not total:
        return np.zeros(count)
    terms = np.stack([inputs, inputs**2], axis=2)
    terms = terms - terms.mean(0)
    known: dict[frozenset[int], float] = {frozenset(): 0.0}

    def fit(columns: frozenset[int]) -> float:
        if columns not in known:
            design = terms[:, sorted(columns)].reshape(len(values), -1)
            weights, *_ = np.linalg.lstsq(design.T @ design, design.T @ spread, rcond=1e-10)
            known[columns] = float(weights @ (design.T @ spread)) / total
        return known[columns]

    gains = np.zeros(count)
    orders = _orders(count)
    for order in orders:
        joined: frozenset[int] = frozenset()
        for column in order:
            gains[column] += fit(joined | {column}) - fit(joined)
            joined |= {column}
    return gains / len(orders)


def _orders(count: int) -> list[Sequence[int]]:
    if count <= 6:
        return list(permutations(range(count)))
    rng = random.Random(0)
    return [rng.sample(range(count), count) for _ in range(ORDERS)]
