"""`sparsevit measure`: how long a backbone or a detector takes under given sparsities, on this machine."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.console import console, messages_on_stderr, progress
from sparsevit.errors import MissingExtraError, UserError
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.latency.comparison import Comparison
    from sparsevit.latency.target import Target

BUILTIN = "builtin"
BUILTIN_CONFIG, BUILTIN_CHECKPOINT = "builtin:digits/supernet.py", "builtin:digits"
SHARES = ("0.3", "0.6")
SIZE, PAPER_SIZE, PAPER_BATCH = "448", "672", 4
MAX_PRECISION = 0.5


def measure(
    config: Annotated[
        str,
        typer.Argument(
            help="Config of a detector with a SparseViT backbone (it is executed); or 'builtin', for digits."
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Weights. A backbone's latency hardly depends on them; a detector's does."),
    ] = None,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            "--sparsity",
            "-s",
            help="Ratios, such as 0.3/0/0.1,0.2,0.2/0, or one for all; may be repeated. By default 0.3 and 0.6.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Image size in pixels: one side, or HEIGHTxWIDTH; may be repeated. By default 448."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images per call; may be repeated. By default 1.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16 or float16; may be repeated. By default float32.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="eager; compiled, by torch; graph, for CUDA-graph replay; compiled+graph; fast, the inference "
            "engine; may be repeated. By default eager."
        ),
    ] = None,
    scope: Annotated[
        str, typer.Option(help="backbone; or detector, end to end with post-processing, on images of the test data.")
    ] = "backbone",
    device: Annotated[str, typer.Option(help="cpu, cuda:N, or auto for a GPU if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all.")] = 0,
    protocol: Annotated[
        str,
        typer.Option(
            help="median; or paper: batch 4, float32, eager, 500 passes to warm up, then the middle half of 500; 672 "
            "pixels unless told otherwise."
        ),
    ] = "median",
    precision: Annotated[
        float, typer.Option(help="Stop once all intervals are within this fraction of their median.")
    ] = 0.01,
    seconds: Annotated[float, typer.Option(help="Measure each target at most about this long.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of the order of measuring.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a page with a figure of all latencies, as .html.")] = None,
) -> None:
    """Measure the latency of a detector's backbone under some sparsities, beside the dense one, on this machine.

    Times are of a whole batch: medians with 95 % confidence intervals, corrected for the drift of the machine. Sizes,
    batches, dtypes and engines that are repeated are all combined.

    Example: sparsevit measure builtin -s 0.3 -s 0.6/0/0.2,0.4,0.5/0 --size 448 --size 672 --batch 1 --plot ms.html
    """
    from sparsevit.cli import measured
    from sparsevit.latency.comparison import PAPER, PROTOCOLS
    from sparsevit.latency.target import Target, parse_size

    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is unknown: write {' or '.join(PROTOCOLS)}")
    if not 0 < precision <= MAX_PRECISION:
        raise UserError(f"a precision of {precision} is none: give a fraction of the median, such as 0.01 for 1 %")
    _check_plot(plot)
    targets = [
        Target(device, threads, one_dtype, one_batch, parse_size(one_size), one_engine, scope).resolve()
        for one_engine, one_dtype, one_size, one_batch in product(
            engine or ["eager"],
            dtype or ["float32"],
            size or [PAPER_SIZE if protocol == PAPER else SIZE],
            batch or [PAPER_BATCH if protocol == PAPER else 1],
        )
    ]
    with messages_on_stderr() if as_json else nullcontext():
        subject, remarks = load_subject(config, checkpoint, scope)
        sparsities = [Sparsity.of(text, subject.depths) for text in sparsity or SHARES]  # type: ignore[arg-type]
        found, skipped = [], []
        for target in dict.fromkeys(targets):
            try:
                found.append(_measure(subject, target, sparsities, protocol, precision, seconds, seed))
            except _recoverable() as error:
                if len(targets) == 1:
                    raise
                skipped.append((target, str(error)))
            else:
                if not as_json:
                    measured.print_comparison(found[-1])
    for target, reason in skipped if not as_json else ():
        console.print(f"\nnot measured: {target}: {reason}", markup=False)
    for line in remarks if not as_json else ():
        console.print(f"note: {line}", markup=False)
    if as_json:
        typer.echo(measured.as_json(found, skipped, remarks))
    if plot is not None and found:
        measured.write_plot(found, plot)


def _measure(
    subject: nn.Module,
    target: Target,
    sparsities: list[Sparsity],
    protocol: str,
    precision: float,
    seconds: float,
    seed: int,
) -> Comparison:
    from sparsevit.latency.comparison import compare, steps

    dense = Sparsity.of(None, subject.depths)  # type: ignore[arg-type]
    with progress(f"measuring {target}", steps(protocol, len({dense, *sparsities}))) as step:
        return compare(
            subject,
            target,
            sparsities,
            protocol=protocol,
            budget_s=seconds,
            precision=precision,
            seed=seed,
            step=step,
        )


def _recoverable() -> type[Exception]:
    """What is wrong with one target of several, and no reason to stop measuring the others."""
    from sparsevit.latency.memory import MemoryShortError

    return MemoryShortError


def _check_plot(plot: Path | None) -> None:
    """Refuse what could not be written before anything is measured for it."""
    if plot is None:
        return
    if plot.suffix.lower() != ".html":
        raise UserError(
            f"--plot writes an HTML page: name it such as {plot.with_suffix('.html').name}, not {plot.name}"
        )
    if plot.is_dir():
        raise UserError(f"cannot write {plot}: it is a folder")


def load_subject(
    config: str, checkpoint: str | None, scope: str, command: str = "measure"
) -> tuple[nn.Module, list[str]]:
    """What is to be timed, and what to know of its input."""
    if config == BUILTIN:
        config, checkpoint = BUILTIN_CONFIG, checkpoint or BUILTIN_CHECKPOINT
    try:
        from sparsevit.openmmlab.config import load_backbone

        if scope == "backbone":
            return load_backbone(config, checkpoint), []
        from sparsevit.openmmlab.timed import load_detector
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"sparsevit {command} (module {error.name})", "openmmlab") from error
    detector = load_detector(config, checkpoint)
    remarks = [f"the detector was given {detector.images.origin}"]
    if checkpoint is None:
        remarks.append("without a checkpoint a detector finds next to nothing, and post-processing takes no time")
    return detector, remarks
