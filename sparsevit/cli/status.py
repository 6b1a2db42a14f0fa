"""`sparsevit status`: how far a study is and what it has found, read from its database alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.cli.options import Out, Settings, StudyFile

if TYPE_CHECKING:
    from pathlib import Path

    from sparsevit.search.results import StudyResults
    from sparsevit.search.spec import StudySpec

WATCH_S = 2.0


def status(
    study: StudyFile,
    out: Out = None,
    setting: Settings = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 2 seconds, until the study is done.")
    ] = False,
) -> None:
    """Show the progress, the workers, the Pareto front and the best configuration of a study, also while it runs.

    Example: sparsevit status studies/digits.toml --watch
    """
    import time

    from sparsevit.console import console
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec

    spec = StudySpec.load(study, setting or [])
    results = load_results(spec, out=out)
    _print(results, spec, out)
    while watch and len(results.trials) < results.trials_asked:
        time.sleep(WATCH_S)
        results = load_results(spec, out=out)
        console.clear()
        _print(results, spec, out)


def _print(results: StudyResults, spec: StudySpec, out: Path | None) -> None:
    from sparsevit.cli.tables import print_best, print_dense, print_differences, print_front, print_latency_error
    from sparsevit.console import console

    failed = f", {results.failed} failed" if results.failed else ""
    console.print(f"study {results.name}: {len(results.trials)} of {results.trials_asked} trials finished{failed}")
    for line in _workers(spec, out):
        console.print(line, markup=False)
    console.print(
        f"avoided: {results.infeasible_avoided} infeasible and {results.duplicates_avoided} duplicate configurations"
    )
    print_dense(results)
    print_latency_error(results)
    print_front(results)
    print_differences(results)
    print_best(results)


def _workers(spec: StudySpec, out: Path | None) -> list[str]:
    """One line per worker: since when, and the trial it is at."""
    from sparsevit.search.storage import storage_at
    from sparsevit.search.worker import worker_label, workers_of

    with storage_at(spec.url(out), create=False) as storage:
        found = workers_of(storage.engine, spec.name)
    return [
        f"worker {worker_label(one.worker)}: since {one.started:%Y-%m-%d %H:%M} UTC, "
        + ("between trials" if one.trial is None else f"at trial {one.trial}")
        + (", asked to stop" if one.stopping else "")
        for one in found
    ]
