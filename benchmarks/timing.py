"""Shared by the benchmarks: medians of CUDA graph replays, and the arithmetic that a sparsity leaves to do."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity, windows_per_stage

CONFIGURATIONS = {
    "dense": "dense",
    "cfg1": "0.3/0/0.1,0.2,0.2/0",
    "cfg2": "0.6/0/0.2,0.4,0.5/0",
    "cfg3": "0.7/0/0.2,0.4,0.5/0",
    "60 %": 0.6,
}
"""The published configurations, and the same ratio everywhere."""

VARIANTS = {
    "tiny": {"embed_dims": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dims": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dims": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


def build(variant: str, seed: int = 0) -> SparseSwin:
    """A Swin with random weights whose norms, biases and bias tables matter too."""
    torch.manual_seed(seed)
    model = SparseSwin(**VARIANTS[variant]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def sparsities(model: SparseSwin) -> dict[str, Sparsity]:
    """The five configurations of the table, by name; for other depths the third stage's ratios are stretched."""
    layers = (model.depths[2] + 1) // 2
    found = {}
    for name, value in CONFIGURATIONS.items():
        if isinstance(value, str) and "/" in value:
            stages = [stage.split(",") for stage in value.split("/")]
            stages[2] = [stages[2][i * len(stages[2]) // layers] for i in range(layers)]
            value = "/".join(",".join(stage) for stage in stages)
        found[name] = Sparsity.of(value, model.depths)
    return found


def flops(model: SparseSwin, sparsity: Sparsity, size: tuple[int, int], batch: int) -> int:
    """Floating-point operations of one pass: linear layers and attention's two products, a multiply-add being two."""
    tokens = model.window_size**2
    counts = windows_per_stage(size, window=model.window_size, patch=model.patch_size)
    total = 0
    height, width = (math.ceil(side / model.patch_size) for side in size)
    total += 2 * batch * height * width * model.num_features[0] * 3 * model.patch_size**2
    kept = iter(sparsity.kept(counts))
    for number, depth in enumerate(model.depths):
        channels = model.num_features[number]
        per_layer = [next(kept) for _ in sparsity.stages[number]]
        for block in range(depth):
            rows = batch * per_layer[block // 2] * tokens
            total += rows * (24 * channels**2 + 4 * tokens * channels)
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        if number + 1 < len(model.depths):
            total += 2 * batch * height * width * 4 * channels * 2 * channels
    return total


def medians(calls: Sequence[Callable[[], object]], seconds: float = 3.0, warm_up: float = 0.5) -> list[float]:
    """Median time of each call on the GPU in ms. Calls take turns, so that a drift of the clock meets all alike."""
    start = time.perf_counter()
    while time.perf_counter() - start < warm_up:
        for call in calls:
            call()
        torch.cuda.synchronize()
    samples: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(samples[0]) < 20:
        pairs = []
        for call in calls:
            call()  # the first of two finds the caches as the other call left them
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            call()
            events[1].record()
            pairs.append(events)
        torch.cuda.synchronize()
        for found, (first, last) in zip(samples, pairs, strict=True):
            found.append(first.elapsed_time(last))
    return [statistics.median(found) for found in samples]


def in_graph(call: Callable[[], object], repeats: int = 1) -> Callable[[], None]:
    """A call as a CUDA graph that does it `repeats` times in a row."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay
