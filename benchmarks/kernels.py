"""Each kernel of a pass, alone and in the pass: its time, its bytes and operations, and what these would take at best.

Launches are recorded from a real pass, so shapes and arguments are those of the backbone.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timing import build, in_graph, medians

from sparsevit.engine import accelerate, forward
from sparsevit.engine.kernels.merge import joined_channels
from sparsevit.engine.kernels.sums import SLOT
from sparsevit.engine.tuning import Tile, WindowChoice
from sparsevit.model import SparseSwin

BYTES_PER_S, FLOPS_PER_S = 4.3e12, 790e12
"""Measured on an H200: a device-to-device copy, and a large bfloat16 matrix product."""

NAMES = (
    "embed",
    "linear",
    "merge",
    "attention",
    "window_attention",
    "pair_attention",
    "feed_forward",
    "held_feed_forward",
    "chained_feed_forward",
    "shared_feed_forward",
    "norm",
    "magnitude",
    "score",
    "rank",
    "score_and_rank",
)


Choice = Tile | WindowChoice | tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Launch:
    """A call of a kernel's launcher, and what it costs at least."""

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    flops: int
    bytes: int

    def run(self, choice: Choice | None = None) -> None:
        """With other block sizes: in place of the launch's own, or as other keywords."""
        if isinstance(choice, Tile | WindowChoice):
            self.call(*(choice if type(each) is type(choice) else each for each in self.arguments), **self.keywords)
        else:
            self.call(*self.arguments, **{**self.keywords, **dict(choice or ())})

    @property
    def floor_us(self) -> float:
        return max(self.flops / FLOPS_PER_S, self.bytes / BYTES_PER_S) * 1e6


def record(model: SparseSwin, images: torch.Tensor, dtype: torch.dtype, sparsity: Any) -> list[Launch]:
    """The launches of one pass, in order."""
    backbone = accelerate(model, dtype=dtype, graphs=False)
    backbone.sparsity = sparsity
    backbone(images)  # plans and compiles with passes of its own
    launches: list[Launch] = []
    originals = {name: getattr(forward, name) for name in NAMES}

    def wrap(name: str) -> Callable[..., None]:
        def call(*arguments: Any, **keywords: Any) -> None:
            title, operations, moved = cost(name, arguments, keywords)
            launches.append(Launch(title, originals[name], arguments, keywords, operations, moved))
            originals[name](*arguments, **keywords)

        return call

    try:
        for name in NAMES:
            setattr(forward, name, wrap(name))
        backbone(images)
    finally:
        for name, original in originals.items():
            setattr(forward, name, original)
    return launches


def cost(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[str, int, int]:
    """A title with the shapes, operations, and bytes read and written once each (2 per element)."""
    if name in ("linear", "merge"):
        weights = arguments[1 if name == "linear" else 3].weight
        selected = keywords.get("source") or keywords.get("target")
        rows = selected.total if selected else arguments[4 if name == "merge" else 2].shape[0]
        k, n = weights.shape
        add = rows * n * 2 if keywords.get("residual") is not None else 0
        return f"{name} {rows}x{k}x{n}", 2 * rows * k * n, 2 * (rows * (k + n) + k * n) + add
    if name == "attention":
        heads, rows, channels = arguments[1].shape[1], arguments[2].total, arguments[3].shape[1]
        tokens = keywords["window"] ** 2
        shifted = " shifted" if len(arguments[1]) > 1 else ""
        return f"attention {rows}x{channels} h{heads}{shifted}", 4 * rows * tokens * channels, 8 * rows * channels
    if name in ("window_attention", "pair_attention"):
        rows, channels, (kinds, heads, _, _) = arguments[3].total, arguments[5].shape[1], arguments[2].shape
        operations = rows * channels * (6 * channels + 4 * keywords["window"] ** 2)
        title = f"{name} {rows}x{channels} h{heads}{' shifted' if kinds > 1 else ''}"
        return title, operations, 4 * rows * channels + 6 * channels**2
    if name in ("feed_forward", "held_feed_forward"):
        rows, (channels, hidden) = arguments[3].total, arguments[1].weight.shape
        return f"{name} {rows}x{channels}", 4 * rows * channels * hidden, 4 * rows * channels
    if name in ("chained_feed_forward", "shared_feed_forward"):
        rows, (channels, hidden) = keywords["target"].total, arguments[1].weight.shape
        return f"{name} {rows}x{channels}", 4 * rows * channels * hidden, 4 * channels * (rows + hidden)
    if name == "embed":
        images, weight, out = arguments[0], arguments[1], arguments[6]
        return (
            f"embed {out.shape[0]}x{out.shape[1]}",
            2 * out.shape[0] * weight.numel(),
            2 * (images.numel() + out.numel()),
        )
    if name in ("norm", "magnitude"):
        x = arguments[0]
        return f"{name} {x.shape[0]}x{x.shape[1]}", 0, x.numel() * (4 if name == "norm" else 2)
    scores = arguments[{"score": 2, "rank": 0, "score_and_rank": 3}[name]]
    return f"{name} {tuple(scores.shape)}", 0, arguments[1].numel() * 4 * scores.shape[1]


def report(model: SparseSwin, images: torch.Tensor, dtype: torch.dtype, sparsity: str, *, tune: str | None) -> None:
    """Print the table of a pass's kernels; with `tune`, try block sizes for each instead."""
    launches = record(model, images, dtype, sparsity)
    if tune is not None:
        search(launches, images, dtype, sparsity, Path(tune))
        return
    titles: dict[str, list[int]] = {}
    for number, launch in enumerate(launches):
        titles.setdefault(launch.name, []).append(number)
    times = time_alone([(launches[same[0]], None) for same in titles.values()])
    steps = time_in_pass(model, images, dtype, sparsity, launches)
    print(f"{'kernel':34s} {'count':>5s} {'us':>8s} {'in pass':>8s} {'floor':>7s} {'TFLOP/s':>8s} {'sum us':>8s}")
    for same, us in sorted(zip(titles.values(), times, strict=True), key=lambda pair: -pair[1] * len(pair[0])):
        one = launches[same[0]]
        found = [steps[number] for number in same]
        step = "beside" if any(map(math.isnan, found)) else f"{statistics.mean(found):.2f}"
        print(
            f"{one.name:34s} {len(same):5d} {us:8.2f} {step:>8s} {one.floor_us:7.2f} {one.flops / us / 1e6:8.0f} "
            f"{us * len(same):8.2f}"
        )
    whole = sum(us * len(same) for same, us in zip(titles.values(), times, strict=True))
    print(
        f"sum of {len(launches)} launches {whole:.1f} us, in a pass {sum(us for us in steps if us == us):.1f} us, "
        f"of floors {sum(each.floor_us for each in launches):.1f} us"
    )


PASSES = 30


def time_in_pass(
    model: SparseSwin, images: torch.Tensor, dtype: torch.dtype, sparsity: str, launches: list[Launch]
) -> list[float]:
    """Microseconds by which each launch makes a pass longer: from the end of the one before to its own end.

    Medians over replays of a pass's graph, by the profiler's clock. NaN for norms, which run beside the others.
    """
    backbone = accelerate(model, dtype=dtype)
    backbone.sparsity = sparsity
    replay = backbone.replay(images)
    replay.images.copy_(images)
    for _ in range(PASSES):
        replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PASSES):
            replay()
            torch.cuda.synchronize()  # so that no pass begins in the one before
    events = [event for event in profile.profiler.kineto_results.events() if event.device_type().name == "CUDA"]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns(), event.name()) for event in events)
    ours = ("_", "chained_feed_forward", "shared_feed_forward")  # Triton's names begin as functions' do
    chain = [(start, end) for start, end, name in spans if name.startswith(ours) and not name.startswith("_norm")]
    names = [launch.name for launch in launches if not launch.name.startswith("norm")]
    assert len(chain) == PASSES * len(names), f"{len(chain)} kernels in {PASSES} passes of {len(names)}"
    passes = [chain[i : i + len(names)] for i in range(0, len(chain), len(names))]
    steps = [
        statistics.median((each[i][1] - (each[i - 1][1] if i else each[0][0])) / 1000 for each in passes)
        for i in range(len(names))
    ]
    of_chain = iter(steps)
    return [math.nan if launch.name.startswith("norm") else next(of_chain) for launch in launches]


REPEATS = 20


def time_alone(cases: list[tuple[Launch, Choice | None]], seconds: float = 0.05) -> list[float]:
    """Microseconds of each launch: graphs of many in a row, one case after the other."""
    found = []
    for launch, tile in cases:
        replay = in_graph(lambda launch=launch, tile=tile: launch.run(tile), REPEATS)
        found.append(medians([replay], seconds, warm_up=0.01)[0] * 1000 / REPEATS)
    return found


LINEAR = (
    (64, 64, 64, 4, 3), (64, 64, 64, 4, 4), (64, 128, 64, 4, 3), (64, 128, 64, 4, 4), (128, 64, 64, 4, 3),
    (128, 64, 64, 4, 4), (128, 64, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4),
    (128, 256, 64, 8, 3), (64, 256, 64, 8, 3), (128, 128, 128, 8, 2), (64, 64, 128, 4, 3), (64, 128, 128, 4, 2),
    (128, 64, 32, 4, 3), (128, 128, 32, 8, 3), (64, 128, 32, 4, 3), (64, 64, 64, 4, 2), (64, 128, 64, 4, 2),
    (128, 64, 64, 4, 2), (128, 128, 64, 4, 2), (64, 128, 64, 8, 3), (64, 128, 64, 8, 4), (64, 128, 64, 8, 5),
    (64, 192, 64, 4, 2), (64, 192, 64, 4, 3), (64, 192, 64, 8, 4), (128, 96, 32, 4, 3), (64, 96, 32, 4, 3),
    (64, 128, 64, 4, 5), (64, 192, 64, 4, 5), (64, 64, 128, 4, 4), (64, 64, 128, 4, 5), (128, 192, 64, 8, 4),
)  # fmt: skip
"""Rows, columns, depth, warps, stages."""

MERGE = (
    (128, 128, 64, 8, 5), (128, 128, 64, 8, 6), (128, 128, 128, 8, 3), (64, 128, 64, 4, 5), (128, 64, 64, 4, 5),
    (128, 64, 64, 4, 2), (64, 64, 64, 4, 5), (64, 64, 64, 4, 6), (64, 64, 128, 4, 4), (64, 128, 128, 4, 3),
    (64, 256, 64, 4, 3), (64, 256, 64, 8, 4), (128, 256, 64, 8, 4),
)  # fmt: skip
"""For merging besides: few programs, long sums."""


def candidates(launch: Launch) -> list[Choice]:
    """Block sizes worth trying."""
    name = launch.name.split()[0]
    if name == "feed_forward":
        limit = 128 if launch.arguments[0].shape[1] <= 96 else 168
        return [
            Tile(rows, columns, 0, warps, stages, registers)
            for rows, warps in ((64, 4), (128, 8))
            for columns in (32, 64)
            for stages in (2, 3)
            for registers in (None, limit)
        ]
    if name in ("linear", "merge"):
        x = launch.arguments[0]
        k = x.shape[1] if name == "linear" else joined_channels(launch.arguments[2], x.shape[1])
        found = [Tile(*each) for each in (LINEAR if name == "linear" else LINEAR + MERGE)]
        found = [tile for tile in found if k % tile.depth == 0 and (tile.depth > 32 or k % 64)]
        if name == "merge" and launch.arguments[6] is not None:  # of which there is a slot for each block of columns
            slots, n = len(launch.arguments[6]), launch.arguments[3].weight.shape[1]
            found = [tile for tile in found if math.ceil(n / tile.columns) == slots]
        if launch.keywords.get("residual") is not None:
            n = launch.arguments[1].weight.shape[1]
            found = [tile for tile in found if tile.columns % SLOT == 0 or tile.columns >= n]
            found += [replace(tile, early=True) for tile in found]
        return found + [replace(tile, maps=True) for tile in found]
    if name == "window_attention":
        return [
            WindowChoice(each, 4, stages, registers)
            for each in sorted(
                {math.ceil(launch.arguments[3].total_windows / slots) for slots in (88, 132, 176, 264, 352)}
            )
            for stages in (2, 3)
            for registers in (None, 128, 168)
        ]
    if name == "pair_attention":
        tile = launch.arguments[6]
        return [
            replace(tile, depth=depth, stages=stages, registers=registers)
            for depth, stages in ((32, 3), (32, 4), (64, 2), (64, 3))
            for registers in (128, 168)
        ]
    if name == "attention":
        return [
            (("programs", programs), ("stages", stages), ("warps", warps))
            for programs in (264, 528, 1056, 2112)
            for stages, warps in ((1, 4), (2, 4), (3, 4), (2, 2))
        ]
    if name == "embed":
        return [(("rows", rows), ("warps", warps)) for rows, warps in ((64, 4), (64, 8), (128, 4), (128, 8), (256, 8))]
    return []


def search(launches: list[Launch], images: torch.Tensor, dtype: torch.dtype, sparsity: str, path: Path) -> None:
    """Time a pass with every candidate of every distinct launch, one after the other, keeping what makes it shorter.

    A launch alone says too little: in a pass it waits for room beside the one before, and finds other things in caches.
    """
    chain = [launch for launch in launches if not launch.name.startswith("norm")]  # norms run beside
    distinct = {kind(launch): launch for launch in chain if candidates(launch)}
    jobs = [(name, choice) for name, launch in distinct.items() for choice in candidates(launch)]
    workers = min(30, (os.cpu_count() or 2) - 1)
    setting = (tuple(images.shape), str(dtype).removeprefix("torch."), sparsity)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:  # compiling takes far longer than timing
        parts = [pool.submit(compile_all, setting, jobs[i::workers]) for i in range(workers)]
        works = {job for part in parts for job in part.result()}
    chosen: dict[str, Choice | None] = {}

    def time_pass() -> float:
        replay = in_graph(lambda: [launch.run(chosen.get(kind(launch))) for launch in chain])
        return medians([replay], 0.08, warm_up=0.01)[0] * 1000

    now = time_pass()
    print(f"{sparsity}: a pass without norms {now:.1f} us")
    results: dict[str, list[dict[str, Any]]] = {}
    for name, launch in distinct.items():
        count = sum(kind(each) == name for each in chain)
        found = []
        for choice in candidates(launch):
            if (name, choice) in works:
                chosen[name] = choice
                found.append((time_pass(), choice))
        found.sort(key=lambda pair: pair[0])
        print(f"{name} x {count}, floor {launch.floor_us:.2f} us")
        for us, choice in found[:4]:
            print(f"    {(us - now) / count:+8.2f} us each  {shown(choice)}")
        results[name] = [{"pass_us": us, **(dict(one) if isinstance(one, tuple) else asdict(one))} for us, one in found]
        chosen[name] = found[0][1] if found and found[0][0] < now - 0.5 else None
        now = min(now, found[0][0]) if chosen[name] is not None else now
    print(f"{sparsity}: with the best of each {time_pass():.1f} us")
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(results, file, indent=1)
    os.replace(file.name, path)


def kind(launch: Launch) -> str:
    """Launches that share their block sizes have the same."""
    return launch.name.removesuffix(" shifted")


def shown(choice: Choice) -> str:
    values = [f"{name} {value}" for name, value in choice] if isinstance(choice, tuple) else astuple(choice)
    return " ".join(str(each) for each in values)


def compile_all(setting: tuple[tuple[int, ...], str, str], jobs: list[tuple[str, Choice]]) -> list[tuple[str, Choice]]:
    """In a process of its own: run each job once, which fills Triton's cache on disk; returns those that can run."""
    shape, dtype_name, sparsity = setting
    dtype = getattr(torch, dtype_name)
    model = build("tiny").cuda()
    launches = {
        kind(launch): launch
        for launch in record(model, torch.randn(shape, device="cuda", dtype=dtype), dtype, sparsity)
    }
    works = []
    for name, tile in jobs:
        try:
            launches[name].run(tile)
            torch.cuda.synchronize()
        except Exception as error:
            if "out of resource" not in str(error):
                print(f"{name} {tile}: {repr(error)[:200]}")
            continue
        works.append((name, tile))
    return works
