"""How figures and tables word things: metrics, ratios, latencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

from sparsevit.search.results import Measured

MAIN_METRICS = ("bbox_mAP", "segm_mAP")
"""Of the dozens that COCO's evaluation gives, those that are shown besides the one that was searched for."""

_METRICS = {"segm": "mask", "bbox": "bbox"}


def metric_label(metric: str) -> str:
    """`bbox_mAP` reads "bbox mAP" and `segm_mAP` reads "mask mAP"; any other name keeps its words."""
    first, _, rest = metric.partition("_")
    return f"{_METRICS[first]} {rest.replace('_', ' ')}" if first in _METRICS and rest else metric.replace("_", " ")


def shown_metrics(metric: str, metrics: Sequence[str]) -> list[str]:
    """The metric that was searched for, then the main ones among all `metrics`."""
    return [metric, *(name for name in MAIN_METRICS if name in metrics and name != metric)]


def figure_of(metrics: Mapping[str, float] | None, metric: str) -> float | None:
    """The metric's figure, or None where it was not evaluated or is not a finite number."""
    value = (metrics or {}).get(metric)
    return value if value is not None and math.isfinite(value) else None


def accuracy_text(value: float | None) -> str:
    """A fraction with three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def ms_text(value: float) -> str:
    """Milliseconds with three significant digits or more: 4.71, 47.1, 471.2."""
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


def measured_text(measured: Measured | None) -> str:
    """The median with its interval, or a dash."""
    if measured is None:
        return "–"
    return f"{ms_text(measured.median_ms)} [{ms_text(measured.low_ms)}, {ms_text(measured.high_ms)}]"


def ratio_text(value: Decimal) -> str:
    """A ratio as short as it can be read: 0, .3, .25."""
    return f"{value:f}".removeprefix("0") or "0"
