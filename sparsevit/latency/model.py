"""The latency of every sparsity on one target, from about a minute of measuring, with its error stated."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.latency.additive import draw, fit_table, kendall, tails
from sparsevit.latency.engines import Clock
from sparsevit.latency.results import HeldOut, Timing
from sparsevit.latency.target import Target, environment
from sparsevit.latency.timing import PROGRESS, measure
from sparsevit.sparsity import Sparsity, SparsitySpace, windows_per_stage

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.console import Step
    from sparsevit.model.protocol import SparseBackbone

__all__ = ["PROGRESS", "HeldOut", "LatencyError", "LatencyModel", "fit"]

FORMAT = 1
MIXED_PER_CELL = 0.5
"""Random configurations measured beside the cells: with cells alone, the fit sees neighbours of dense, and no noise."""


@dataclass(frozen=True)
class LatencyError:
    """What held-out configurations say of a latency model.

    Attributes:
        mean: mean relative error, a fraction.
        largest: largest relative error, a fraction.
        tau: Kendall's tau between predicted and measured latencies.
    """

    mean: float
    largest: float
    tau: float


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency, in ms per batch, of every sparsity of a space on one target in one environment.

    Attributes:
        windows: windows of each stage at the target's image size.
        dense: the dense latency as it was measured.
        dense_ms: the dense latency as the model has it.
        cells: what each grid value in each layer adds to it (mostly below 0), ms; one row per layer.
        held_out: random configurations that were measured too and had no part in the fit.
    """

    target: Target
    environment: Mapping[str, str]
    space: SparsitySpace
    windows: tuple[int, ...]
    dense: Timing
    dense_ms: float
    cells: tuple[tuple[float, ...], ...]
    held_out: tuple[HeldOut, ...]

    def predict(self, sparsity: Sparsity) -> float:
        """Latency in ms.

        Raises:
            UserError: if the sparsity is not of the model's space.
        """
        return float(self.predict_levels(np.array([self.space.encode(sparsity)]))[0])

    def predict_levels(self, levels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Latencies in ms, shape `(N,)`, of sparsities given as levels, shape `(N, L)`, sorted inside every stage."""
        latencies = np.full(len(levels), self.dense_ms)
        for layer, row in enumerate(self._table):
            latencies += row[levels[:, layer]]
        return latencies

    @cached_property
    def error(self) -> LatencyError:
        """How far predictions are from held-out measurements; NaN where too few were held out to say."""
        predicted = np.array([check.predicted_ms for check in self.held_out])
        measured = np.array([check.measured_ms for check in self.held_out])
        if not self.held_out:
            return LatencyError(float("nan"), float("nan"), float("nan"))
        relative = np.abs(predicted / measured - 1)
        return LatencyError(float(relative.mean()), float(relative.max()), kendall(predicted, measured))

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        return np.array(self.cells)

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
            "dense_ms": self.dense_ms,
            "cells": self.cells,
            "held_out": [asdict(check) | {"sparsity": str(check.sparsity)} for check in self.held_out],
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> LatencyModel:
        """The model that `to_json` wrote.

        Raises:
            UserError: if the text is no latency model of this version.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise UserError(f"latency model of format {fields['format']!r}, but this version reads {FORMAT}")
            model = cls(
                target=Target.parse(fields["target"]),
                environment=dict(fields["environment"]),
                space=SparsitySpace(tuple(fields["depths"]), tuple(fields["grid"])),
                windows=tuple(fields["windows"]),
                dense=Timing(**fields["dense"]),
                dense_ms=float(fields["dense_ms"]),
                cells=tuple(tuple(map(float, row)) for row in fields["cells"]),
                held_out=tuple(
                    HeldOut(**check | {"sparsity": Sparsity.parse(check["sparsity"])}) for check in fields["held_out"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is no latency model: {type(error).__name__} {error}; fit it again") from None
        if [len(row) for row in model.cells] != [len(model.space.grid)] * sum(model.space.layers):
            raise UserError("this is no latency model: its cells do not fit its space; fit it again")
        return model


def fit(
    backbone: nn.Module,
    target: Target,
    space: SparsitySpace,
    *,
    held_out: int = 12,
    budget_s: float = 60.0,
    precision: float = 0.005,
    seed: int = 0,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> LatencyModel:
    """Measure the cells of a latency model and some random sparsities, fit it, and check it on others.

    Those held out are measured in the same shuffled rounds, so that what the check finds is the model's error and not
    that the machine was busier later; the fit does not see them.

    Args:
        backbone: a `SparseBackbone`; it is copied, and stays as it is.
        held_out: how many random configurations to check it on, at least 2; fewer are if the space has no more.
        budget_s: seconds for everything; a slow target takes longer, as each configuration is measured several times.
        precision: at which measuring stops early, see `measure`.
        seed: of the random configurations and the order of measuring.
        step: told of progress, `PROGRESS` steps altogether.
        clock: see `measure`.

    Raises:
        UserError: if the space is not the backbone's, or the target cannot be measured here.
    """
    target = target.resolve()
    sparse = cast("SparseBackbone", backbone)
    if tuple(sparse.depths) != space.depths:
        raise UserError(f"the space has depths {space.depths}, but the backbone has {tuple(sparse.depths)}")
    if held_out < 2:
        raise UserError(f"{held_out} held-out configurations cannot check a latency model: hold out at least 2")
    windows = windows_per_stage(
        target.size, stages=len(space.depths), window=sparse.window_size, patch=sparse.patch_size
    )
    cells = [space.dense, *tails(space, windows)]
    held = draw(space, windows, held_out, seed, besides=cells)
    if len(held) < 2:  # a space so small that the cells are all of it: measure those anew
        held = draw(space, windows, held_out, seed, besides=[space.dense])
    mixed = draw(space, windows, round(MIXED_PER_CELL * len(cells)), seed + 1, besides=[*cells, *held])
    measured = [*cells, *mixed]
    timings = measure(
        backbone,
        target,
        [*measured, *held],
        budget_s=budget_s,
        precision=precision,
        seed=seed,
        step=step,
        clock=clock,
    )
    fitted, checks = timings[: len(measured)], timings[len(measured) :]
    dense_ms, table = fit_table(
        space,
        windows,
        measured,
        np.array([timing.median_ms for timing in fitted]),
        np.array([timing.samples for timing in fitted]),
    )
    facts = environment(target)
    model = LatencyModel(target, facts, space, windows, timings[0], dense_ms, tuple(map(tuple, table.tolist())), ())
    predicted = [model.predict(sparsity) for sparsity in held]
    checked = zip(held, predicted, (check.median_ms for check in checks), strict=True)
    return replace(model, held_out=tuple(HeldOut(*check) for check in checked))
