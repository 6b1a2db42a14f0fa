"""`sparsevit measure`: how long a backbone takes under given sparsities, on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.console import console, progress
from sparsevit.errors import MissingExtraError
from sparsevit.sparsity import Sparsity, layers_per_stage, windows_per_stage

if TYPE_CHECKING:
    from sparsevit.latency.results import Timing
    from sparsevit.latency.target import Target
    from sparsevit.model import SparseSwin

BUILTIN = "builtin"
BUILTIN_CONFIG, BUILTIN_CHECKPOINT = "builtin:digits/supernet.py", "builtin:digits"


def measure(
    config: Annotated[
        str,
        typer.Argument(
            help="Config of a detector with a SparseViT backbone (it is executed); or 'builtin', for digits."
        ),
    ],
    checkpoint: Annotated[
        str | None, typer.Argument(help="Weights; latency hardly depends on them, so none are needed.")
    ] = None,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            "--sparsity",
            "-s",
            help="Ratios, such as 0.3/0/0.1,0.2,0.2/0, or one for all; may be repeated. By default 0.3 and 0.6.",
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Image size in pixels: one side, or HEIGHTxWIDTH.")] = "448",
    batch: Annotated[int, typer.Option(help="Images per call.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda:N, or auto for a GPU if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all.")] = 0,
    engine: Annotated[str, typer.Option(help="eager, or graph for CUDA-graph replay.")] = "eager",
    seconds: Annotated[float, typer.Option(help="Measure at most about this long.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of the order of measuring.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the latency of a detector's backbone under some sparsities, beside the dense one, on this machine.

    Times are of a whole batch of random images: medians with 95 % confidence intervals, corrected for the drift of the
    machine.

    Example: sparsevit measure builtin -s 0.3 -s 0.6/0/0.2,0.4,0.5/0 --size 448
    """
    from sparsevit.latency.target import Target, parse_size
    from sparsevit.latency.timing import PROGRESS
    from sparsevit.latency.timing import measure as time_all

    target = Target(device, threads, dtype, batch, parse_size(size), engine).resolve()
    backbone = _load(config, checkpoint)
    asked = [Sparsity.of(text, backbone.depths) for text in ("dense", *(sparsity or ("0.3", "0.6")))]
    sparsities = list(dict.fromkeys(asked))
    with nullcontext() if as_json else progress("measuring", PROGRESS) as step:
        timings = time_all(backbone, target, sparsities, budget_s=seconds, seed=seed, step=step)
    shares = [kept_share(one, backbone, target.size) for one in sparsities]
    if as_json:
        typer.echo(_as_json(target, sparsities, timings, shares))
    else:
        _print_table(target, sparsities, timings, shares)


def kept_share(sparsity: Sparsity, backbone: SparseSwin, size: tuple[int, int]) -> float:
    """Windows that blocks compute, as a fraction of all windows of all blocks."""
    windows = windows_per_stage(
        size, stages=len(backbone.depths), window=backbone.window_size, patch=backbone.patch_size
    )
    blocks = [
        min(2, depth - 2 * layer)
        for depth, layers in zip(backbone.depths, layers_per_stage(backbone.depths), strict=True)
        for layer in range(layers)
    ]
    kept = sum(count * some for count, some in zip(sparsity.kept(windows), blocks, strict=True))
    return kept / sum(count * depth for count, depth in zip(windows, backbone.depths, strict=True))


def _load(config: str, checkpoint: str | None) -> SparseSwin:
    if config == BUILTIN:
        config, checkpoint = BUILTIN_CONFIG, checkpoint or BUILTIN_CHECKPOINT
    try:
        from sparsevit.openmmlab.config import load_backbone
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"sparsevit measure (module {error.name})", "openmmlab") from error
    return load_backbone(config, checkpoint)


def _print_table(
    target: Target, sparsities: Sequence[Sparsity], timings: Sequence[Timing], shares: Sequence[float]
) -> None:
    from rich.table import Table

    from sparsevit.latency.target import environment

    console.print(f"\n{environment(target)['device']}, {target}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sparsity", no_wrap=True)
    for title in ("ms", "95 % interval", "speed-up", "windows kept", "samples"):
        table.add_column(title, justify="right", no_wrap=True)
    for sparsity, timing, share in zip(sparsities, timings, shares, strict=True):
        table.add_row(
            "dense" if sparsity.is_dense else str(sparsity),
            f"{timing.median_ms:.4g}",
            f"{timing.low_ms:.4g} – {timing.high_ms:.4g}",
            f"{timings[0].median_ms / timing.median_ms:.2f}×",
            f"{share:.1%}",
            str(timing.samples),
        )
    console.print(table)
    slower = [str(one) for one, each in zip(sparsities, timings, strict=True) if each.low_ms > timings[0].high_ms]
    if slower:
        console.print(f"slower than dense on this target: {', '.join(slower)}", markup=False)


def _as_json(target: Target, sparsities: Sequence[Sparsity], timings: Sequence[Timing], shares: Sequence[float]) -> str:
    from dataclasses import asdict

    from sparsevit.latency.target import environment

    rows = [
        {
            "sparsity": str(sparsity),
            **asdict(timing),
            "speedup": timings[0].median_ms / timing.median_ms,
            "windows_kept": share,
        }
        for sparsity, timing, share in zip(sparsities, timings, shares, strict=True)
    ]
    return json.dumps({"target": str(target), "environment": environment(target), "latencies": rows}, indent=2)
