"""How latency grows with image size and batch, dense and sparse, and where sparsity pays.

Swin-T's backbone with random weights, on one device, engine and dtype. Points are kept as they are measured, so a run
that is stopped, or out of time, goes on where it was.

Example: python benchmarks/latency_scale.py --device cuda:0 --out runs/latency_scale
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from sparsevit.console import console, progress
from sparsevit.dashboard.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, dress
from sparsevit.dashboard.report import write_text
from sparsevit.errors import UserError
from sparsevit.latency.comparison import Comparison, compare
from sparsevit.latency.environment import difference, environment
from sparsevit.latency.memory import MemoryShortError
from sparsevit.latency.target import Target
from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity

SIZES = (448, 672, 896, 1120, 1344, 1792, 2240, 2688)
BATCHES = (1, 2, 4, 8, 16, 32)
RATIOS = ("0.3", "0.6")
POINT_S = 0.4
"""Seconds to measure a point for; large ones take their fewest rounds, however long those are."""

DENSE_CALLS = 18
"""Dense calls that the fewest rounds of a point amount to, warm-up and first runs included: to plan with."""

PAYS = 1.02
"""Speed-up from which on sparsity is said to pay."""

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)


@dataclass(frozen=True, order=True)
class Point:
    """Image side in pixels and images per call."""

    size: int
    batch: int

    @property
    def pixels(self) -> int:
        return self.size**2 * self.batch

    @property
    def key(self) -> str:
        return f"{self.size}x{self.size} batch {self.batch}"


@dataclass(frozen=True)
class Setting:
    """What all points of a study share."""

    device: str
    threads: int
    dtype: str
    engine: str
    ratios: tuple[str, ...]

    def target(self, point: Point) -> Target:
        size = (point.size, point.size)
        return Target(self.device, self.threads, self.dtype, point.batch, size, self.engine).resolve()


class Results:
    """Points measured so far and reasons for those that were not, in a JSON file that is whole after every point."""

    def __init__(self, path: Path, setting: Setting, facts: Mapping[str, str]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"setting": _words(setting), "environment": dict(facts), "points": {}}
        self.skipped: dict[str, str] = {}
        if not path.is_file():
            return
        try:
            known = json.loads(path.read_text())
            points, then, setting_then = known["points"], known["environment"], known["setting"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} holds no scale study: give another --out") from None
        changed = difference(setting_then | then, self.content["setting"] | dict(facts))
        if changed:
            raise UserError(f"{path} is of another setting or environment ({changed}): give another --out")
        self.content["points"] = points

    def __contains__(self, point: Point) -> bool:
        return point.key in self.content["points"]

    def put(self, point: Point, found: Comparison) -> None:
        """Keep a point; only what it has of its own, as environment and setting are the study's."""
        told = found.as_json()
        kept = {key: told[key] for key in ("latencies", "conditions", "slower_than_dense", "notes")}
        self.content["points"][point.key] = {"size": point.size, "batch": point.batch, **kept}
        write_text(self.path, json.dumps(self.content, indent=1))

    def points(self) -> list[tuple[Point, Mapping[str, Any]]]:
        """All points, small images and batches first."""
        return sorted(
            ((Point(one["size"], one["batch"]), one) for one in self.content["points"].values()), key=lambda one: one[0]
        )

    def ms_of_pixels(self) -> float:
        """Dense milliseconds per pixel at the largest point so far; 0 before there is one."""
        known = self.points()
        if not known:
            return 0.0
        point, found = max(known, key=lambda one: one[0].pixels)
        return float(found["latencies"][0]["ms"]) / point.pixels


def study(
    backbone: torch.nn.Module, setting: Setting, points: Sequence[Point], results: Results, seconds: float
) -> None:
    """Measure the points that are not there yet, smallest first, within the time; says why for those that are left."""
    deadline = time.monotonic() + seconds
    sparsities = [Sparsity.of(ratio, backbone.depths) for ratio in setting.ratios]  # type: ignore[arg-type]
    todo = [point for point in sorted(points, key=lambda one: (one.pixels, one.size)) if point not in results]
    too_large: list[tuple[Point, str]] = []
    with progress("points", len(todo)) as step:
        for point in todo:
            left = deadline - time.monotonic()
            needed = results.ms_of_pixels() * point.pixels * DENSE_CALLS / 1000
            worse = next((why for one, why in too_large if one.pixels <= point.pixels), None)
            if worse is not None:
                results.skipped[point.key] = f"larger than what did not fit ({worse})"
            elif left <= 0 or needed > left:
                results.skipped[point.key] = f"out of time: takes about {needed:.0f} s, {max(left, 0):.0f} s were left"
            else:
                try:
                    found = compare(backbone, setting.target(point), sparsities, budget_s=POINT_S)
                    results.put(point, found)
                except MemoryShortError as error:
                    results.skipped[point.key] = str(error)
                    too_large.append((point, point.key))
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            step(1, point.key)


def markdown(results: Results, ratios: Sequence[str]) -> str:
    """The study as text: what grew how, where sparsity pays, where it does not, and what was left out."""
    facts = ", ".join(f"{name} {value}" for name, value in results.content["environment"].items())
    setting = ", ".join(f"{name} {value}" for name, value in results.content["setting"].items())
    names = ["dense", *(f"{float(ratio):.0%}" for ratio in ratios)]
    lines = ["# Latency of Swin-T's backbone by image size, batch and sparsity", "", f"{setting}; {facts}", ""]
    lines += ["Medians in ms per batch (half width of the 95 % interval), and speed-up over dense.", ""]
    lines += ["| size | batch | " + " | ".join(names) + " | peak memory |", "|---|---|" + "---|" * (len(names) + 1)]
    for point, found in results.points():
        cells = [_cell(row) for row in found["latencies"]]
        peak = found["latencies"][0]["peak_memory_bytes"]
        memory = "-" if peak is None else f"{peak / 2**20:,.0f} MiB"
        lines.append(f"| {point.size} | {point.batch} | " + " | ".join(cells) + f" | {memory} |")
    lines += ["", *_sentences(results, ratios)]
    noted = [one for _, one in results.points() if one["notes"]]
    if noted:
        lines += [
            f"- The machine was noted upon at {len(noted)} points (see the JSON), such as: {noted[0]['notes'][0]}."
        ]
    if results.skipped:
        lines += ["", "Not measured:", "", *(f"- {key}: {why}" for key, why in results.skipped.items())]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    half = (row["high_ms"] - row["low_ms"]) / 2 / row["ms"]
    speedup = "" if row["speedup"] == 1 else f", {row['speedup']:.2f}×"
    return f"{row['ms']:.4g} ± {half:.1%}{speedup}"


def _sentences(results: Results, ratios: Sequence[str]) -> Iterator[str]:
    """How cost grows with pixels, and for each ratio where it pays and where it is slower than dense."""
    known = results.points()
    if len(known) > 1:
        (small, least), (large, most) = (pick(known, key=lambda one: one[0].pixels) for pick in (min, max))
        ms = [float(found["latencies"][0]["ms"]) for found in (least, most)]
        yield (
            f"From {small.key} to {large.key}, {large.pixels / small.pixels:.3g} times the pixels take "
            f"{ms[1] / ms[0]:.3g} times as long, dense."
        )
    for place, ratio in enumerate(ratios, 1):
        rows = [(point, found["latencies"][place]) for point, found in known]
        paying = [point.key for point, row in rows if row["speedup"] >= PAYS]
        slower = [
            f"{point.key} ({row['speedup']:.2f}×)"
            for (point, found), (_, row) in zip(known, rows, strict=True)
            if row["sparsity"] in found["slower_than_dense"]
        ]
        yield f"- {float(ratio):.0%} everywhere pays (at least {PAYS}×) at {len(paying)} of {len(rows)} points."
        yield f"  Slower than dense: {', '.join(slower) or 'nowhere'}."


def plot(results: Results, ratios: Sequence[str]) -> go.Figure:
    """Left: ms per image against image size. Right: speed-up against all pixels of a batch. A colour for each batch."""
    drawn = make_subplots(cols=2, horizontal_spacing=0.1)
    known = results.points()
    names, dashes = ["dense", *(f"{float(ratio):.0%}" for ratio in ratios)], ("solid", "dash", "dot", "dashdot")
    for number, batch in enumerate(sorted({point.batch for point, _ in known})):
        mine = [(point, found["latencies"]) for point, found in known if point.batch == batch]
        for place, name in enumerate(names):
            look = {"color": COLOURS[number % len(COLOURS)], "dash": dashes[place % len(dashes)]}
            rows = [latencies[place] for _, latencies in mine]
            common = {"mode": "lines+markers", "line": look, "legendgroup": f"{batch} {name}"}
            drawn.add_scatter(
                x=[point.size for point, _ in mine], y=[row["ms"] / batch for row in rows],
                name=f"batch {batch}, {name}", row=1, col=1,
                hovertemplate="%{x} pixels: %{y:.4g} ms per image<extra>%{fullData.name}</extra>", **common,
            )  # fmt: skip
            if place:
                drawn.add_scatter(
                    x=[point.pixels / 1e6 for point, _ in mine], y=[row["speedup"] for row in rows],
                    name=f"batch {batch}, {name}", showlegend=False, row=1, col=2,
                    hovertemplate="%{x:.3g} megapixels: %{y:.2f}×<extra>%{fullData.name}</extra>", **common,
                )  # fmt: skip
    dress(drawn, height=620)
    drawn.add_hline(y=1, line={"color": GREY, "width": 1}, row=1, col=2)
    drawn.update_xaxes(type="log", title_text="image side, pixels", tickvals=list(SIZES), row=1, col=1)
    drawn.update_yaxes(type="log", title_text="ms per image", row=1, col=1)
    drawn.update_xaxes(type="log", title_text="megapixels per batch", row=1, col=2)
    drawn.update_yaxes(title_text="speed-up over dense", row=1, col=2)
    return drawn


def _words(setting: Setting) -> dict[str, str]:
    return {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in vars(setting).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--engine", help="by default graph on a GPU, and eager on a CPU")
    parser.add_argument("--dtype", help="by default bfloat16 on a GPU, and float32 on a CPU")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--ratios", nargs="+", default=RATIOS, help="pruning ratios, each everywhere, beside dense")
    parser.add_argument("--seconds", type=float, default=80.0, help="start no point that would go beyond this")
    parser.add_argument("--out", type=Path, default=Path("runs/latency_scale"), help="folder of the results")
    given = parser.parse_args(arguments)
    try:
        device = Target(device=given.device, threads=given.threads).resolve()
        engine = given.engine or ("graph" if device.on_gpu else "eager")
        dtype = given.dtype or ("bfloat16" if device.on_gpu else "float32")
        setting = Setting(device.device, device.threads, dtype, engine, tuple(given.ratios))
        points = [Point(size, batch) for size in given.sizes for batch in given.batches]
        targets = [setting.target(point) for point in points]
        results = Results(given.out / "latency_scale.json", setting, environment(targets[0]))
        torch.manual_seed(0)
        study(SparseSwin().eval(), setting, points, results, given.seconds)
        if results.points():
            write_text(given.out / "latency_scale.html", plot(results, given.ratios).to_html(include_plotlyjs=True))
        write_text(given.out / "latency_scale.md", markdown(results, given.ratios))
    except UserError as error:
        parser.error(str(error))
    console.print(f"\n{markdown(results, given.ratios)}\n{given.out}/latency_scale.json, .md and .html", markup=False)


if __name__ == "__main__":
    main()
