"""Figures of many thousands of points, thinned to what can be told apart on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

MOST = 2000
"""Traces of at most so many points stay as they are."""

CELLS = (72, 40)
"""Columns and rows of the grid, one point of each cell of which is drawn."""

_PER_POINT = ("x", "y", "customdata", "text", "hovertext", "ids")


def thin(drawn: go.Figure) -> go.Figure:
    """A figure that looks the same with fewer points; the given one is left as it is.

    Of markers one stays in each cell of a fine grid over the trace, the first and the outermost ones always; of lines,
    points evenly along them.
    """
    figure = go.Figure(drawn)
    for trace in figure.data:
        if trace.type not in ("scatter", "scattergl") or trace.x is None or len(trace.x) <= MOST:
            continue
        keep = _along(len(trace.x)) if trace.mode == "lines" else _by_cell(trace.x, trace.y)
        count = len(trace.x)
        for name in _PER_POINT:
            values = trace[name]
            if values is not None and not isinstance(values, str) and len(values) == count:
                trace[name] = [values[i] for i in keep]
        for bars in (trace.error_x, trace.error_y):
            for name in ("array", "arrayminus"):
                if bars[name] is not None and len(bars[name]) == count:
                    bars[name] = [bars[name][i] for i in keep]
    return figure


def _along(count: int) -> list[int]:
    return sorted({round(i * (count - 1) / (MOST - 1)) for i in range(MOST)})


def _by_cell(x: Sequence[Any], y: Sequence[Any]) -> list[int]:
    places = [_shares(x), _shares(y)]
    columns, rows = ((share * (cells - 1)).round().astype(int) for share, cells in zip(places, CELLS, strict=True))
    _, first = np.unique(columns * CELLS[1] + rows, return_index=True)
    ends = {int(at(share)) for share in places for at in (np.argmin, np.argmax)}
    return sorted(ends | set(first.tolist()))


def _shares(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Places from 0 to 1 along an axis; what is no number counts by its order."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.arange(len(values), dtype=np.float64)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return np.nan_to_num((numbers - low) / ((high - low) or 1.0))
