"""How `sparsevit measure` shows what was measured: tables, JSON, a page with a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sparsevit.cli.tables import print_whole
from sparsevit.console import console
from sparsevit.latency.comparison import STATISTICS, Comparison
from sparsevit.latency.target import Target

MIB = 1 << 20
TITLES = ("ms", "95 % interval", "speed-up", "windows kept", "peak memory", "samples")


def print_comparison(found: Comparison) -> None:
    """One table, what was odd, and which sparsities do not pay on this target."""
    console.print(f"\n{found.environment['device']}, {found.target}", markup=False)
    console.print(STATISTICS[found.protocol], markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sparsity", no_wrap=True)
    for title in TITLES:
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(
            "dense" if row.sparsity.is_dense else str(row.sparsity),
            f"{row.ms:.4g}",
            f"{row.low_ms:.4g} – {row.high_ms:.4g}",
            f"{row.speedup:.2f}×",
            f"{row.windows_kept:.1%}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / MIB:,.0f} MiB",
            str(row.samples),
        )
    print_whole(table)
    for row in found.slower:
        console.print(f"slower than dense on this target: {row.sparsity}, by {1 / row.speedup - 1:.1%}", markup=False)
    for row in found.no_faster:
        console.print(f"not measurably faster than dense on this target: {row.sparsity}", markup=False)
    for line in found.notes:
        console.print(f"note: {line}", markup=False)


def as_json(found: Sequence[Comparison], skipped: Sequence[tuple[Target, str]], more: Sequence[str]) -> str:
    """All comparisons, the targets that did not fit, and notes on all of them."""
    content = {
        "measurements": [one.as_json() for one in found],
        "skipped": [{"target": str(target), "reason": reason} for target, reason in skipped],
        "notes": list(more),
    }
    return json.dumps(content, indent=2)


def write_plot(found: Sequence[Comparison], path: Path) -> None:
    """A page of its own with all comparisons in one figure.

    Raises:
        UserError: if it cannot be written; nothing half-written is left.
    """
    from sparsevit.dashboard.figures.measured import measured_latencies
    from sparsevit.dashboard.report import write_text

    write_text(path, measured_latencies(found).to_html(include_plotlyjs=True, full_html=True))
