"""`sparsevit check`: can a search run here, on what, and if not, which command makes it so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from sparsevit.console import console

if TYPE_CHECKING:
    from sparsevit.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def check() -> None:
    """Say whether a search can run here: versions, devices, operators, weights, and the cure for what is wrong.

    Exit code 1 if it cannot.

    Example: sparsevit check
    """
    from sparsevit.doctor import can_search, diagnose

    findings = diagnose()
    _show(findings)
    if not can_search(findings):
        console.print("\nA search cannot run here.")
        raise typer.Exit(1)
    console.print("\nA search can run here.")


def _show(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what", "state", "found"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.name), Text(finding.state, style=_COLOURS[finding.state]), Text(finding.detail))
    console.print(table)
    for finding in findings:
        if finding.cure:
            console.print(Text(f"\nTo cure {finding.name}:\n  {finding.cure}"))
