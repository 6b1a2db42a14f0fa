"""`sparsevit export`: a configuration that a study found, as a config that is ready to finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.cli.options import Out, Settings, StudyFile

if TYPE_CHECKING:
    from sparsevit.search.bounds import Limit
    from sparsevit.search.results import StudyResults, TrialResult


def export(
    study: StudyFile,
    trial: Annotated[int | None, typer.Option(min=0, help="A trial's number, in place of the best.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="A configuration, as 0.3/0/0.1,0.2,0.2/0.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="The best trial of at most so many ms, or a share of dense as 70%.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The config file to write.")] = None,
    out: Out = None,
    setting: Settings = None,
) -> None:
    """Write a finetune config for the best trial of a study, or for another configuration.

    With --max-latency it is the best that is known within another budget, confirmed trials first; nothing is searched,
    and whether more trials would likely help is said.

    Example: sparsevit export studies/digits.toml --max-latency 30 -o finetune_30ms.py
    """
    import shlex

    from sparsevit.console import console
    from sparsevit.errors import UserError
    from sparsevit.search.evaluator import Exporter
    from sparsevit.search.export import FINETUNE, bound_ms, choose
    from sparsevit.search.export import export as write
    from sparsevit.search.factory import open_supernet
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec

    if sum(one is not None for one in (trial, sparsity, max_latency)) > 1:
        raise UserError("give one of --trial, --sparsity and --max-latency")
    limit = None if max_latency is None else _limit(max_latency)
    spec = StudySpec.load(study, setting or [])
    results = load_results(spec, out=out)
    max_ms = None if limit is None else bound_ms(results, limit)
    chosen = None if sparsity is not None else choose(results, trial=trial, max_ms=max_ms)
    supernet = open_supernet(spec)
    wanted = chosen.sparsity if chosen is not None else supernet.space.parse(sparsity)
    if output is None and not isinstance(supernet.evaluator, Exporter):
        lines = [f"{wanted}", f"note: {spec.supernet.evaluator} has no export, so no config is written"]
    else:
        path = write(supernet.evaluator, results, wanted, output or spec.folder(out) / FINETUNE)
        lines = [f"{wanted} -> {path}", f"next: sparsevit finetune {shlex.quote(str(path))}"]
    if chosen is not None and max_ms is not None:
        _print_choice(results, chosen, max_ms, spec.search.population)
    elif chosen is not None and chosen.measured is None:
        console.print(f"note: trial {chosen.number} is not confirmed: {chosen.predicted_ms:.4g} ms are predicted")
    console.print("\n".join(lines), markup=False)


def _limit(text: str) -> Limit:
    from sparsevit.errors import UserError
    from sparsevit.search.bounds import parse_limit

    try:
        return parse_limit(text)
    except ValueError as error:
        raise UserError(f"--max-latency {text}: {error}") from None


def _print_choice(results: StudyResults, chosen: TrialResult, max_ms: float, population: int) -> None:
    """What was chosen for a new budget, what might be better, and whether more trials would help."""
    from sparsevit.cli.tables import trial_figures
    from sparsevit.console import console
    from sparsevit.search.advice import advise
    from sparsevit.search.export import better_unconfirmed

    console.print(f"best known within {max_ms:.4g} ms: {trial_figures(chosen)}")
    better = better_unconfirmed(results, chosen, max_ms)
    if better is not None:
        metric = results.metric
        console.print(
            f"note: trial {better.number}, not confirmed, was better in the search ({metric} "
            f"{better.accuracy[metric]:.4f} against {chosen.accuracy[metric]:.4f}; {better.predicted_ms:.4g} ms "
            f"predicted): --trial {better.number} takes it"
        )
    console.print(str(advise(results, max_ms, population=population)))
