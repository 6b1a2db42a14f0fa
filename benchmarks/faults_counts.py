"""What `faults.py` counts, what a database holds at one time, and the table of it all."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa


@dataclass
class Counts:
    """What happened, and below what must not; the names are the rows of the table."""

    searches: int = 0
    workers_killed: int = 0
    parents_killed: int = 0
    servers_killed: int = 0
    trials_asked: int = 0
    trials_complete: int = 0
    trials_failed: int = 0
    evaluations: int = 0
    evaluations_cut_short: int = 0
    same_as_unkilled: int = 0
    paid_for_though_known: int = field(default=0, metadata={"wrong": True})
    paid_for_twice_at_once: int = field(default=0, metadata={"wrong": True})
    wasted_without_a_kill: int = field(default=0, metadata={"wrong": True})
    accuracies_lost: int = field(default=0, metadata={"wrong": True})
    trials_lost: int = field(default=0, metadata={"wrong": True})
    trials_too_many_or_few: int = field(default=0, metadata={"wrong": True})
    trials_left_running: int = field(default=0, metadata={"wrong": True})
    trials_of_one_configuration: int = field(default=0, metadata={"wrong": True})
    trials_without_constraints: int = field(default=0, metadata={"wrong": True})
    infeasible_seen_as_feasible: int = field(default=0, metadata={"wrong": True})
    workers_left_listed: int = field(default=0, metadata={"wrong": True})
    files_left_behind: int = field(default=0, metadata={"wrong": True})
    searches_that_failed: int = field(default=0, metadata={"wrong": True})
    other_than_unkilled: int = field(default=0, metadata={"wrong": True})

    @property
    def wrong(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self) if one.metadata.get("wrong"))


@dataclass
class Snapshot:
    """What was paid for and finished at one time; it may only grow."""

    accuracies: dict[tuple[Any, ...], str] = field(default_factory=dict)
    trials: dict[int, tuple[float, ...]] = field(default_factory=dict)


def snapshot(url: str, name: str) -> Snapshot:
    """What the database holds; an empty one where there is none yet."""
    engine = sa.create_engine(url)
    paid = sa.text("SELECT evaluator, images, kept, sparsity, metrics FROM sparsevit_accuracies")
    finished = sa.text(
        "SELECT trials.trial_id, value FROM trials JOIN trial_values ON trial_values.trial_id = trials.trial_id"
        " JOIN studies ON studies.study_id = trials.study_id"
        " WHERE CAST(state AS TEXT) = 'COMPLETE' AND study_name = :name ORDER BY trials.trial_id, objective"
    )
    found = Snapshot()
    with engine.connect() as connection:
        for *key, metrics in connection.execute(paid):
            found.accuracies[tuple(key)] = metrics
        for trial, value in connection.execute(finished, {"name": name}):
            found.trials[trial] = (*found.trials.get(trial, ()), value)
    engine.dispose()
    return found


def lost(before: dict[Any, Any], now: dict[Any, Any]) -> int:
    return sum(now.get(key) != value for key, value in before.items())


def print_table(found: dict[str, Counts], seconds: float) -> None:
    print(f"\n| | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
    for one in fields(Counts):
        row = [one.name.replace("_", " "), *(str(getattr(counts, one.name)) for counts in found.values())]
        print(f"| {' | '.join(row)} |")
    print(f"\n{seconds:.0f} s")
