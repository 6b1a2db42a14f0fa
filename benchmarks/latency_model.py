"""How well the latency model predicts: fits it on a device and measures random configurations that it has not seen.

    python benchmarks/latency_model.py --engine graph --engine eager --dtype bfloat16 --size 672 --batch 4
    python benchmarks/latency_model.py --builtin --device cpu --threads 1 --size 448 --batch 1 --dtype float32
    python benchmarks/latency_model.py --simulate

The last one compares designs and estimators on made-up devices, whose true latencies are known.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsevit.errors import UserError
from sparsevit.latency.additive import Terms
from sparsevit.latency.bottleneck import fit_bottlenecks, slower
from sparsevit.latency.design import designed, draw, tails
from sparsevit.latency.fitting import check, fit
from sparsevit.latency.model import LatencyError, error_of
from sparsevit.latency.results import HeldOut
from sparsevit.latency.synthetic import Device, cpu
from sparsevit.latency.target import Target, parse_size
from sparsevit.sparsity import Sparsity, SparsitySpace

DEPTHS = {"t": ((2, 2, 6, 2), 96, (3, 6, 12, 24)), "s": ((2, 2, 18, 2), 96, (3, 6, 12, 24)),
          "b": ((2, 2, 18, 2), 128, (4, 8, 16, 32))}  # fmt: skip
DEVICES = {
    "GPU, Swin-T": (Device(), 3000),
    "GPU, saves on repeats": (Device(repeat_us=20), 3000),
    "GPU, stages not additive": (Device(cross=0.05), 3000),
    "GPU, waits for its host": (Device(floor_ms=2.0, noise=0.01), 3000),
    "GPU, Swin-B": (Device(depths=(2, 2, 18, 2), channels=128), 3000),
    "one CPU core": (cpu(), 700),
}
"""Made-up devices, and calls that there is time for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", help="as in sparsevit measure; may be repeated")
    parser.add_argument("--model", choices=sorted(DEPTHS), default="t", help="Swin-T, S or B")
    parser.add_argument("--builtin", action="store_true", help="the built-in supernet in place of a Swin")
    parser.add_argument("--size", default="672", help="pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=200, help="random configurations to check on")
    parser.add_argument("--fit-seconds", type=float, help="measuring for the fit; what a search takes by default")
    parser.add_argument("--check-seconds", type=float, default=30.0, help="measuring for the check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="with --simulate: repetitions")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    try:
        rows = simulate(options.seeds) if options.simulate else [on_device(options, one) for one in _engines(options)]
    except UserError as error:
        sys.exit(f"error: {error}")
    if options.json:
        part = options.json.with_name(f".{options.json.name}.part")
        part.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        part.replace(options.json)


def on_device(options: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Fit on one engine, check on configurations measured afterwards, and print both."""
    target = Target(
        options.device, options.threads, options.dtype, options.batch, parse_size(options.size), engine
    ).resolve()
    backbone = _backbone(options)
    space = SparsitySpace(backbone.depths)
    start = time.perf_counter()
    model = fit(backbone, target, space, budget_s=options.fit_seconds, seed=options.seed)
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    checks = check(model, backbone, options.held_out, budget_s=options.check_seconds, seed=options.seed + 100)
    error = error_of(checks)
    print(f"{model.environment['device']}, {target}: dense {model.dense.median_ms:.4g} ms")
    print(
        f"  fitted in {fit_s:.1f} s to {len(model.cells)} configurations, {len(model.terms)} sum(s); checked in "
        f"{time.perf_counter() - start:.1f} s\n  {_text(error)} on {len(checks)} held-out random configurations",
        flush=True,
    )
    return {
        "target": str(target),
        "environment": dict(model.environment),
        "dense_ms": model.dense.median_ms,
        "fit_seconds": fit_s,
        "measured": len(model.cells),
        "sums": len(model.terms),
        **_figures(error),
        "held_out": [
            {"sparsity": str(one.sparsity), "predicted_ms": one.predicted_ms, "measured_ms": one.measured_ms}
            for one in checks
        ],
    }


def simulate(seeds: int) -> list[dict[str, Any]]:
    """Errors against the truth, mean over seeds, of designs and estimators that get the same number of calls."""
    rows = []
    for title, (device, calls) in DEVICES.items():
        print(f"{title}: dense {device.latency_ms(SparsitySpace(device.depths).dense):.4g} ms")
        found: dict[str, list[LatencyError]] = {}
        for seed in range(seeds):
            for name, error in _compare(device, calls, seed).items():
                found.setdefault(name, []).append(error)
        for name, errors in found.items():
            mean, largest, tau = np.mean([[one.mean, one.largest, one.tau] for one in errors], axis=0)
            rows.append({"device": title, "way": name, **_figures(LatencyError(mean, largest, tau))})
            print(f"  {name:36} {_text(LatencyError(mean, largest, tau))}", flush=True)
    return rows


def _compare(device: Device, calls: int, seed: int) -> dict[str, LatencyError]:
    space, windows = SparsitySpace(device.depths), device.windows
    held = draw(space, windows, 200, seed + 1000)
    cells = tails(space, windows)
    count = round(1.5 * len(cells))
    mixed = draw(space, windows, count, seed, besides=[*cells, *held])
    ways: dict[str, tuple[Sequence[Sparsity], Any]] = {
        "tails, least squares": (cells, _least_squares),
        "tails and random, least squares": ([*cells, *mixed[: len(cells) // 2]], _least_squares),
        "tails and random, our estimator": ([*cells, *mixed[: len(cells) // 2]], fit_bottlenecks),
        "random, our estimator": (mixed, fit_bottlenecks),
        "designed, least squares": (designed(space, windows, count, seed, besides=held), _least_squares),
        "designed, our estimator": (designed(space, windows, count, seed, besides=held), fit_bottlenecks),
    }
    levels = np.array([space.encode(one) for one in held])
    found = {}
    for name, (chosen, estimate) in ways.items():
        measured = [space.dense, *chosen]
        rng = np.random.default_rng([seed, 1])
        each = calls / len(measured)
        spread = device.noise * 1.25 / np.sqrt(each)  # of a median of so many
        ms = np.array([device.latency_ms(one) for one in measured]) * np.exp(rng.normal(0, spread, len(measured)))
        terms = estimate(space, windows, measured, ms, np.full(len(measured), each))
        predicted = slower(space, terms, levels)
        found[name] = error_of(
            [HeldOut(one, float(ms), device.latency_ms(one)) for one, ms in zip(held, predicted, strict=True)]
        )
    return found


def _least_squares(
    space: SparsitySpace, windows: Sequence[int], measured: Sequence[Sparsity], ms: Any, _: Any
) -> tuple[Terms, ...]:
    """One number per layer and ratio, as the measurements have it."""
    kept, table = np.array([one.kept(windows) for one in measured]), space.kept_table(windows)
    cells = [(layer, count) for layer, row in enumerate(table) for count in np.unique(row) if count < row.max()]
    columns = np.column_stack([np.ones(len(kept)), *((kept[:, layer] == count) for layer, count in cells)])
    found = np.linalg.lstsq(columns / ms[:, None], np.ones(len(ms)), rcond=None)[0]
    rows = np.zeros(table.shape)
    for (layer, count), change in zip(cells, found[1:], strict=True):
        rows[layer, table[layer] == count] = change
    none = ((0.0,) * len(space.grid),) * len(space.layers)
    return (Terms(float(found[0]), tuple(tuple(map(float, row)) for row in rows), none),)


def _engines(options: argparse.Namespace) -> list[str]:
    return options.engine or ["eager"]


def _backbone(options: argparse.Namespace) -> Any:
    if options.builtin:
        from sparsevit.cli.measure import BUILTIN, load_subject

        return load_subject(BUILTIN, None, "backbone")[0]
    from sparsevit.model import SparseSwin

    depths, channels, heads = DEPTHS[options.model]
    return SparseSwin(depths=depths, embed_dims=channels, num_heads=heads).eval()


def _figures(error: LatencyError) -> dict[str, float]:
    return {"mean_error": error.mean, "largest_error": error.largest, "tau": error.tau}


def _text(error: LatencyError) -> str:
    return f"{error.mean:.2%} in the mean, {error.largest:.2%} at most, tau {error.tau:.3f}"


if __name__ == "__main__":
    main()
