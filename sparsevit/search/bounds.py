"""Latency limits as users write them, and what they come to in ms."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from sparsevit.errors import UserError
from sparsevit.search.results import Bounds


@dataclass(frozen=True)
class Limit:
    """A latency limit: milliseconds, or a share (fraction) of the dense latency."""

    value: float
    is_share: bool = False

    def __str__(self) -> str:
        return f"{self.value * 100:g}%" if self.is_share else f"{self.value:g} ms"

    def ms(self, dense_ms: float) -> float:
        """This limit in ms, where the dense subnet takes `dense_ms`."""
        return self.value * dense_ms if self.is_share else self.value


def parse_limit(value: Any) -> Limit:
    """The limit that a number (ms), `"35 ms"` or a text like `"70%"` stands for.

    Raises:
        ValueError: if it is neither, or not above 0.
    """
    if isinstance(value, Limit):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|ms)?\s*", value) if isinstance(value, str) else None
    if match is not None:
        number, is_share = float(match[1]), match[2] == "%"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number, is_share = float(value), False
    else:
        raise ValueError('give milliseconds as a number, or a share of the dense latency as "70%"')
    if not (math.isfinite(number) and number > 0):
        raise ValueError("a latency limit is above 0")
    return Limit(number / 100 if is_share else number, is_share)


def resolve(most: Limit, least: Limit | None, dense_ms: float) -> Bounds:
    """Both limits in ms.

    Raises:
        UserError: if the lower one comes out above the upper one.
    """
    bounds = Bounds(min_ms=least.ms(dense_ms) if least else 0.0, max_ms=most.ms(dense_ms))
    if bounds.min_ms > bounds.max_ms:
        raise UserError(
            f"latency.min {least} is above latency.max {most}: {bounds.min_ms:.4g} ms against {bounds.max_ms:.4g} ms, "
            f"as the dense subnet takes {dense_ms:.4g} ms"
        )
    return bounds
