"""What `sparsevit check` finds out: whether a search can run here, on what, and the exact cure for each thing wrong."""

from __future__ import annotations

from pathlib import Path

from sparsevit.doctor.finding import Finding, State, can_search

__all__ = ["Finding", "State", "can_search", "diagnose"]


def diagnose() -> list[Finding]:
    """Everything that a search depends on, in the order in which to cure it. Imports what it judges: takes seconds."""
    from sparsevit.doctor import machine, packages

    findings = [packages.python(), *packages.versions(packages.requirements()), packages.mmcv()]
    if can_search(findings):  # what a wrong version breaks is cured with the version
        findings += packages.imports()
    return [*findings, *machine.devices(), machine.weights(Path(__file__).parents[1])]
