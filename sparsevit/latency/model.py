"""The latency of every sparsity on one target, with its error stated. Fitting one is in `sparsevit.latency.fitting`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.latency.additive import Rows, Terms, kendall
from sparsevit.latency.bottleneck import slower
from sparsevit.latency.engines import ENGINES
from sparsevit.latency.results import HeldOut, Timing
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity, SparsitySpace

FORMAT = 2
KNOWN = 8
"""Configurations besides the dense one that tell a machine's pace when it is measured again."""


class OldModelError(UserError):
    """A latency model as another version of this package stored it: fit it again."""


@dataclass(frozen=True)
class Cell:
    """One configuration that a latency model was fitted to."""

    sparsity: Sparsity
    timing: Timing


@dataclass(frozen=True)
class LatencyError:
    """What held-out configurations say of a latency model.

    Attributes:
        mean: mean relative error, a fraction.
        largest: largest relative error, a fraction.
        tau: Kendall's tau between predicted and measured latencies.
        worst: where the largest error is; `None` without held-out configurations.
    """

    mean: float
    largest: float
    tau: float
    worst: HeldOut | None = None


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency, in ms per batch, of every sparsity of a space on one target in one environment.

    Attributes:
        windows: windows of each stage at the target's image size.
        dense: the dense latency as it was measured.
        terms: what latencies are sums of; of several the largest sum counts, see `fit_bottlenecks`.
        cells: what it was fitted to.
        held_out: random configurations that were measured too and had no part in the fit.
        extensions: how often more was measured for it, see `extend`.
        seconds: that fitting took, measuring included.
        created: when, ISO 8601, UTC.
    """

    target: Target
    environment: Mapping[str, str]
    space: SparsitySpace
    windows: tuple[int, ...]
    dense: Timing
    terms: tuple[Terms, ...]
    cells: tuple[Cell, ...]
    held_out: tuple[HeldOut, ...]
    extensions: int = 0
    seconds: float = field(default=0.0, compare=False)
    created: str = field(default="", compare=False)

    def predict(self, sparsity: Sparsity) -> float:
        """Latency in ms.

        Raises:
            UserError: if the sparsity is not of the model's space.
        """
        return float(self.predict_levels(np.array([self.space.encode(sparsity)]))[0])

    def predict_levels(self, levels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Latencies in ms, shape `(N,)`, of sparsities given as levels, shape `(N, L)`, sorted inside every stage."""
        return slower(self.space, self.terms, levels)

    def known(self, count: int) -> dict[Sparsity, float]:
        """Latencies, ms, that were measured for it, to measure again beside `count` new configurations.

        The dense one, and a quarter as many others as there are new ones, but at most `KNOWN`, from fast to slow.
        """
        dense = self.space.dense
        others = sorted((cell for cell in self.cells if cell.sparsity != dense), key=lambda cell: cell.timing.median_ms)
        wanted = min(KNOWN, count // 4, len(others))
        chosen = (others[(2 * place + 1) * len(others) // (2 * wanted)] for place in range(wanted))
        return {dense: self.dense.median_ms} | {cell.sparsity: cell.timing.median_ms for cell in chosen}

    @cached_property
    def error(self) -> LatencyError:
        """How far predictions are from held-out measurements; NaN where too few were held out to say."""
        return error_of(self.held_out)

    def to_json(self) -> str:
        """The model as JSON text, from which `from_json` makes an equal one."""
        fields = {
            "format": FORMAT,
            "target": str(self.target),
            "environment": dict(self.environment),
            "depths": self.space.depths,
            "grid": [f"{value:f}" for value in self.space.grid],
            "windows": self.windows,
            "dense": asdict(self.dense),
            "terms": [asdict(one) for one in self.terms],
            "cells": [asdict(cell.timing) | {"sparsity": str(cell.sparsity)} for cell in self.cells],
            "held_out": [asdict(check) | {"sparsity": str(check.sparsity)} for check in self.held_out],
            "extensions": self.extensions,
            "seconds": self.seconds,
            "created": self.created,
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> LatencyModel:
        """The model that `to_json` wrote.

        Raises:
            OldModelError: if it is of another version's format.
            UserError: if the text is no latency model.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise OldModelError(
                    f"latency model of format {fields['format']!r}, but this version reads {FORMAT}: fit it again"
                )
            model = cls(
                target=Target.parse(fields["target"]),
                environment=dict(fields["environment"]),
                space=SparsitySpace(tuple(fields["depths"]), tuple(fields["grid"])),
                windows=tuple(fields["windows"]),
                dense=Timing(**fields["dense"]),
                terms=tuple(
                    Terms(float(one["dense_ms"]), _rows(one["cells"]), _rows(one["repeats"])) for one in fields["terms"]
                ),
                cells=tuple(
                    Cell(Sparsity.parse(cell.pop("sparsity")), Timing(**cell)) for cell in map(dict, fields["cells"])
                ),
                held_out=tuple(
                    HeldOut(**check | {"sparsity": Sparsity.parse(check["sparsity"])}) for check in fields["held_out"]
                ),
                extensions=int(fields["extensions"]),
                seconds=float(fields["seconds"]),
                created=str(fields["created"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is no latency model: {type(error).__name__} {error}; fit it again") from None
        grid, layers, stages = len(model.space.grid), sum(model.space.layers), len(model.space.layers)
        for one in model.terms:
            shapes = [len(row) for row in one.cells], [len(row) for row in one.repeats]
            if shapes != ([grid] * layers, [grid] * stages):
                raise UserError("this is no latency model: its terms do not fit its space; fit it again")
        if not model.terms:
            raise UserError("this is no latency model: it has no terms; fit it again")
        return model


def error_of(held_out: Sequence[HeldOut]) -> LatencyError:
    """What checks say: mean and largest relative error of predictions, Kendall's tau; NaN if there are none."""
    if not held_out:
        return LatencyError(float("nan"), float("nan"), float("nan"))
    predicted = np.array([check.predicted_ms for check in held_out])
    measured = np.array([check.measured_ms for check in held_out])
    relative = np.abs(predicted / measured - 1)
    worst = held_out[int(np.argmax(relative))]
    return LatencyError(float(relative.mean()), float(relative.max()), kendall(predicted, measured), worst)


def error_limit(target: Target) -> float:
    """The mean error, a fraction, from which on a model of this target is not to be trusted, unless a study says other.

    A GPU that replays what was recorded repeats its times to a fraction of a percent; a host that launches kernels, or
    computes them itself while others work on the machine, does not.
    """
    if not target.on_gpu:
        return 0.05
    return 0.01 if ENGINES[target.engine].replays else 0.04


def _rows(rows: Sequence[Sequence[float]]) -> Rows:
    return tuple(tuple(map(float, row)) for row in rows)
