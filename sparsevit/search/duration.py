"""Durations as people write them, and as they read them."""

from __future__ import annotations

import math
import re
from typing import Any

_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)"


def parse_duration(value: Any) -> float:
    """Seconds of a number, or of a text like `90 s`, `45 min`, `8h` or `2h 30min`.

    Raises:
        ValueError: if it is neither, or not above 0.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and re.fullmatch(rf"\s*(?:{_PART}\s*)+", value):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, value))
    else:
        raise ValueError('give seconds as a number, or a text like "45 min" or "8h"')
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError("a duration is above 0")
    return seconds


def duration_text(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
