"""`sparsevit search`: run a study, or go on with it, and say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.cli.options import Grace, Out, Ray, Settings, StudyFile, Workers

if TYPE_CHECKING:
    from sparsevit.search.results import StudyResults
    from sparsevit.search.run import Finish
    from sparsevit.search.spec import StudySpec


def search(
    study: StudyFile,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Finished trials in total, those of earlier runs included.")
    ] = None,
    out: Out = None,
    setting: Settings = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrule search.seed.")] = None,
    workers: Workers = None,
    grace: Grace = None,
    ray: Ray = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it may take; search nothing.")
    ] = False,
) -> None:
    """Find the sparsity configurations with the best accuracy within a latency bound.

    Stop it with Ctrl-C and type the same again to go on: nothing is measured or evaluated twice.

    Example: sparsevit search studies/digits.toml --trials 100 --set latency.max='"60%"'
    """
    from sparsevit.search.run import search as run
    from sparsevit.search.spec import StudySpec
    from sparsevit.search.worker import GRACE_S

    if dry_run:
        from sparsevit.cli.dry_run import print_preview
        from sparsevit.search.preview import preview

        spec = StudySpec.load(study, [*_settings(setting, seed), *([f"search.trials={trials}"] if trials else [])])
        print_preview(preview(spec, out=out), spec, study)
        return
    spec = StudySpec.load(study, _settings(setting, seed))
    results = run(
        spec,
        trials=trials,
        out=out,
        then=_annotate(spec, study, out),
        workers=workers,
        grace_s=grace or GRACE_S,
        ray=ray,
    )
    _print(results, spec, study, out)


def _settings(setting: list[str] | None, seed: int | None) -> list[str]:
    return [*(setting or []), *([f"search.seed={seed}"] if seed is not None else [])]


def _annotate(spec: StudySpec, study: Path, out: Path | None) -> Finish:
    """Gives optuna-dashboard what it shows of the study besides its trials."""
    import shlex

    from sparsevit.dashboard.optuna_notes import annotate

    typed = shlex.quote(str(study)) + (f" --out {shlex.quote(str(out))}" if out else "")
    return lambda opened, results, evaluator: annotate(opened, results, evaluator, spec.folder(out), typed)


def _print(results: StudyResults, spec: StudySpec, study: Path, out: Path | None) -> None:
    import shlex

    from sparsevit.cli.tables import print_best, print_dense, print_differences, print_front, print_latency_error
    from sparsevit.console import console
    from sparsevit.dashboard.optuna_artifacts import ARTIFACTS
    from sparsevit.dashboard.report import write_report
    from sparsevit.search.export import FINETUNE
    from sparsevit.search.storage import shown

    folder = spec.folder(out)
    typed = shlex.quote(str(study))
    report = write_report(results, folder / "report.html", study=typed)
    url, config = shown(spec.url(out)), folder / FINETUNE
    exported = results.best is not None and config.is_file()

    print_dense(results)
    print_latency_error(results)
    print_front(results)
    print_differences(results)
    print_best(results)
    place = f" --out {shlex.quote(str(out))}" if out else ""
    lines = [f"\ndatabase         {url}"]
    if exported:
        lines.append(f"finetune config  {config}")
    lines += [f"report           {report}", "\nnext:"]
    if exported:
        lines.append(f"  sparsevit finetune {shlex.quote(str(config))}")
    lines += [
        f"  sparsevit search {typed} --trials {results.trials_asked + 50}{place}",
        f"  sparsevit export {typed} --max-latency {results.bounds.max_ms * 0.9:.4g}{place}",
        f"  optuna-dashboard {shlex.quote(url)} --artifact-dir {shlex.quote(str(folder / ARTIFACTS))}",
    ]
    console.print("\n".join(lines), markup=False)
