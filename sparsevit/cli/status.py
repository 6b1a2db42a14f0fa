"""`sparsevit status`: how far a study is and what it has found, read from its database alone."""

from __future__ import annotations

from sparsevit.cli.options import Out, Settings, StudyFile


def status(
    study: StudyFile,
    out: Out = None,
    setting: Settings = None,
) -> None:
    """Show the progress, the Pareto front and the best configuration of a study, also while it runs.

    Example: sparsevit status studies/digits.toml
    """
    from sparsevit.cli.tables import print_best, print_dense, print_differences, print_front, print_latency_error
    from sparsevit.console import console
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec

    results = load_results(StudySpec.load(study, setting or []), out=out)
    failed = f", {results.failed} failed" if results.failed else ""
    console.print(f"study {results.name}: {len(results.trials)} of {results.trials_asked} trials finished{failed}")
    console.print(
        f"avoided: {results.infeasible_avoided} infeasible and {results.duplicates_avoided} duplicate configurations"
    )
    print_dense(results)
    print_latency_error(results)
    print_front(results)
    print_differences(results)
    print_best(results)
