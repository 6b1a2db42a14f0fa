"""All figures by name. Each is a pure function: a study's results in, a plotly figure out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import plotly.graph_objects as go

from sparsevit.dashboard.figures.errors import drift, latency_errors
from sparsevit.dashboard.figures.front import front
from sparsevit.dashboard.figures.importance import importance
from sparsevit.dashboard.figures.latency import predicted_vs_measured
from sparsevit.dashboard.figures.layers import layer_sensitivity
from sparsevit.dashboard.figures.progress import progress
from sparsevit.dashboard.figures.ratios import ratios_along_front
from sparsevit.dashboard.figures.searching import avoided, time_per_trial, timeline
from sparsevit.search.results import StudyResults

__all__ = [
    "FIGURES",
    "FigureKind",
    "avoided",
    "drift",
    "front",
    "importance",
    "latency_errors",
    "layer_sensitivity",
    "predicted_vs_measured",
    "progress",
    "ratios_along_front",
    "time_per_trial",
    "timeline",
]


@dataclass(frozen=True)
class FigureKind:
    """A figure that a page can name: its title, one sentence that explains it, and the function that draws it."""

    title: str
    explanation: str
    draw: Callable[[StudyResults], go.Figure]


FIGURES: Mapping[str, FigureKind] = MappingProxyType(
    {
        "front": FigureKind(
            "Accuracy against latency",
            "Every trial by its predicted latency and its accuracy on the search images; the line joins those that no "
            "other trial beats in both, and filled diamonds are those measured on the target and evaluated on all "
            "confirmation images.",
            front,
        ),
        "ratios_along_front": FigureKind(
            "Ratios along the front",
            "Each column is a trial of the front, fastest first, and each cell the share of windows that a layer "
            "skips: layers that stay pale to the left are the ones that accuracy depends on.",
            ratios_along_front,
        ),
        "predicted_vs_measured": FigureKind(
            "Predicted against measured latency",
            "On the dashed line the latency model is exact; held-out configurations were measured to check it and not "
            "to fit it.",
            predicted_vs_measured,
        ),
        "progress": FigureKind(
            "Progress of the search",
            "Every trial's accuracy, the best within the bounds so far, and the hypervolume of the front: once both "
            "lines are flat, more trials find little.",
            progress,
        ),
        "layer_sensitivity": FigureKind(
            "What each layer costs and saves",
            "A least-squares plane through all trials: layers with a short bar to the left and a long one to the right "
            "are worth pruning first.",
            layer_sensitivity,
        ),
        "importance": FigureKind(
            "Importance of each layer",
            "How much of the difference between trials each layer's ratio explains: layers with a long bar for "
            "accuracy and a short one for latency are to be touched last.",
            importance,
        ),
        "latency_errors": FigureKind(
            "Errors of the latency model",
            "Above the dashed line the model says more than was measured; it was fitted to its cells, so that only the "
            "other points tell how well it predicts; the band is 2 % wide to each side.",
            latency_errors,
        ),
        "drift": FigureKind(
            "Drift of the device",
            "Each measured latency against the model's word on its configuration, in the order of time: points that "
            "climb or fall together say that the machine changed and not the configuration.",
            drift,
        ),
        "avoided": FigureKind(
            "Evaluations that were spared",
            "Configurations that the sampler drew and passed over, as they miss the bounds or keep windows that were "
            "tried before; each would have cost a trial.",
            avoided,
        ),
        "time_per_trial": FigureKind(
            "Time per trial",
            "Seconds that the evaluation of each trial took; one that is known from an earlier study costs nothing.",
            time_per_trial,
        ),
        "timeline": FigureKind(
            "Timeline by worker",
            "A bar for each trial's evaluation, a row for each worker.",
            timeline,
        ),
    }
)
