"""One thing that was looked at, as a value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """`WRONG` means that no search can run before `cure` was typed; a `WARNING` costs something else."""

    name: str
    state: State
    detail: str
    cure: str = ""


def can_search(findings: Iterable[Finding]) -> bool:
    return all(finding.state is not State.WRONG for finding in findings)
