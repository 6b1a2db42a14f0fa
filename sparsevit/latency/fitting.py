"""Measures a latency model on its target: fits it, checks it on other configurations, extends it where it errs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import numpy as np

from sparsevit.errors import UserError
from sparsevit.latency import timing
from sparsevit.latency.additive import Terms
from sparsevit.latency.bottleneck import fit_bottlenecks
from sparsevit.latency.design import designed, draw, tails
from sparsevit.latency.engines import Clock
from sparsevit.latency.model import Cell, LatencyModel
from sparsevit.latency.results import HeldOut, Timing
from sparsevit.latency.target import Target, environment
from sparsevit.latency.timing import PROGRESS
from sparsevit.sparsity import Sparsity, SparsitySpace, windows_per_stage

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.console import Step
    from sparsevit.model.protocol import SparseBackbone

__all__ = ["PROGRESS", "check", "default_seconds", "extend", "fit"]

PER_CELL = 1.5
"""Configurations measured for each cell of the model, a layer's ratio: less is left to luck, more costs its time."""

HELD_OUT = 16
GPU_SECONDS, CPU_SECONDS = 12.0, 60.0
"""For measuring, by default; a GPU in this time runs each configuration more often than a CPU in four times it."""


def fit(
    backbone: nn.Module,
    target: Target,
    space: SparsitySpace,
    *,
    held_out: int = HELD_OUT,
    budget_s: float | None = None,
    precision: float = 0.002,
    seed: int = 0,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> LatencyModel:
    """Measure a designed set of configurations, fit a model, and check it on random ones.

    Those held out are measured in the same shuffled rounds, so that what the check finds is the model's error and not
    that the machine was busier later; the fit does not see them.

    Args:
        backbone: a `SparseBackbone`, or a `SparseDetector` for targets of that scope; it is copied, and stays as it is.
        held_out: how many random configurations to check it on, at least 2; fewer are if the space has no more.
        budget_s: seconds for everything, by default 12 on a GPU and 60 on a CPU. Making all configurations ready
            (capturing graphs, compiling) does not count; a slow target takes longer, as each is measured several times.
        precision: at which measuring stops early, see `measure`.
        seed: of the configurations and the order of measuring.
        step: told of progress, `PROGRESS` steps altogether.
        clock: see `measure`.

    Raises:
        UserError: if the space is not the backbone's, or the target cannot be measured here.
    """
    start = clock()
    target = target.resolve()
    windows = _windows(backbone, target, space)
    if held_out < 2:
        raise UserError(f"{held_out} held-out configurations cannot check a latency model: hold out at least 2")
    cells = tails(space, windows)
    held = draw(space, windows, held_out, seed, besides=[space.dense])
    asked = designed(space, windows, round(PER_CELL * len(cells)), seed + 1, besides=[space.dense, *held])
    if len(asked) < len(cells):  # a space so small that the held-out ones are needed: measure those anew
        asked = designed(space, windows, round(PER_CELL * len(cells)), seed + 1, besides=[space.dense])
    measured = [space.dense, *asked]
    timings = timing.measure(
        backbone,
        target,
        [*measured, *held],
        budget_s=default_seconds(target) if budget_s is None else budget_s,
        precision=precision,
        seed=seed,
        step=step,
        clock=clock,
    )
    chosen = tuple(map(Cell, measured, timings))
    terms = _terms(space, windows, chosen)
    model = LatencyModel(target, environment(target), space, windows, timings[0], terms, chosen, ())
    return _finished(model, held, timings[len(measured) :], clock() - start)


def extend(
    model: LatencyModel,
    backbone: nn.Module,
    *,
    held_out: int = HELD_OUT,
    budget_s: float | None = None,
    precision: float = 0.002,
    seed: int = 1,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> LatencyModel:
    """The model fitted anew to as many further configurations too, and checked on others than before.

    Arguments are those of `fit`; `seed` has to differ from that of the fit. Configurations held out so far are among
    what it is fitted to now.
    """
    start = clock()
    space, windows = model.space, model.windows
    known = [cell.sparsity for cell in model.cells]
    before = [check.sparsity for check in model.held_out]
    held = draw(space, windows, held_out, seed, besides=[*known, *before]) or before
    old = [] if held == before else before
    count = round(PER_CELL * len(tails(space, windows)))
    more = designed(space, windows, count, seed + 1, besides=[*known, *before, *held]) or known[1:]
    asked = [space.dense, *old, *more]
    timings = timing.measure(
        backbone,
        model.target,
        [*asked, *held],
        budget_s=default_seconds(model.target) if budget_s is None else budget_s,
        precision=precision,
        seed=seed,
        known=model.known(len(asked)),
        step=step,
        clock=clock,
    )
    # Of the dense one, and of others that were measured again, both figures count.
    cells = (*model.cells, *map(Cell, asked, timings))
    fitted = replace(model, terms=_terms(space, windows, cells), cells=cells, extensions=model.extensions + 1)
    return _finished(fitted, held, timings[len(asked) :], model.seconds + clock() - start)


def check(
    model: LatencyModel,
    backbone: nn.Module,
    count: int,
    *,
    budget_s: float | None = None,
    precision: float = 0.005,
    seed: int = 2,
    step: Step | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[HeldOut, ...]:
    """Measure up to `count` new random configurations, which neither the fit nor its own check has seen.

    What the device has drifted since the fit is taken out by configurations measured then and now, as in a search.

    Raises:
        UserError: if the target cannot be measured here, or the space holds no configuration that is new.
    """
    if count < 2:
        raise UserError(f"{count} configurations cannot check a latency model: check at least 2")
    seen = [*(cell.sparsity for cell in model.cells), *(one.sparsity for one in model.held_out)]
    drawn = draw(model.space, model.windows, count, seed, besides=seen)
    if not drawn:
        raise UserError("all configurations of the space were measured already: none is left to check the model on")
    timings = timing.measure(
        backbone,
        model.target,
        drawn,
        budget_s=default_seconds(model.target) if budget_s is None else budget_s,
        precision=precision,
        seed=seed,
        known=model.known(len(drawn)),
        step=step,
        clock=clock,
    )
    return _checks(model, drawn, timings)


def default_seconds(target: Target) -> float:
    """How long measuring takes by default."""
    return GPU_SECONDS if target.on_gpu else CPU_SECONDS


def _terms(space: SparsitySpace, windows: Sequence[int], cells: Sequence[Cell]) -> tuple[Terms, ...]:
    return fit_bottlenecks(
        space,
        windows,
        [cell.sparsity for cell in cells],
        np.array([cell.timing.median_ms for cell in cells]),
        np.array([cell.timing.samples for cell in cells], np.float64),
    )


def _finished(model: LatencyModel, held: Sequence[Sparsity], timings: Sequence[Timing], seconds: float) -> LatencyModel:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(model, held_out=_checks(model, held, timings), seconds=seconds, created=created)


def _checks(model: LatencyModel, held: Sequence[Sparsity], timings: Sequence[Timing]) -> tuple[HeldOut, ...]:
    return tuple(
        HeldOut(sparsity, model.predict(sparsity), found.median_ms)
        for sparsity, found in zip(held, timings, strict=True)
    )


def _windows(backbone: nn.Module, target: Target, space: SparsitySpace) -> tuple[int, ...]:
    sparse = cast("SparseBackbone", backbone)
    if tuple(sparse.depths) != space.depths:
        raise UserError(f"the space has depths {space.depths}, but the backbone has {tuple(sparse.depths)}")
    return windows_per_stage(target.size, stages=len(space.depths), window=sparse.window_size, patch=sparse.patch_size)
