"""`sparsevit export`: a configuration that a study found, as a config that is ready to finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsevit.cli.options import Out, Settings, StudyFile


def export(
    study: StudyFile,
    trial: Annotated[int | None, typer.Option(min=0, help="A trial's number, in place of the best.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="A configuration, as 0.3/0/0.1,0.2,0.2/0.")] = None,
    max_latency: Annotated[float | None, typer.Option(min=0, help="The best trial of at most so many ms.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The config file to write.")] = None,
    out: Out = None,
    setting: Settings = None,
) -> None:
    """Write a finetune config for the best trial of a study, or for another configuration.

    Example: sparsevit export studies/digits.toml --max-latency 30 -o finetune_30ms.py
    """
    import shlex

    from sparsevit.console import console
    from sparsevit.errors import UserError
    from sparsevit.search.export import FINETUNE, choose
    from sparsevit.search.export import export as write
    from sparsevit.search.factory import open_supernet
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec

    if sum(one is not None for one in (trial, sparsity, max_latency)) > 1:
        raise UserError("give one of --trial, --sparsity and --max-latency")
    spec = StudySpec.load(study, setting or [])
    results = load_results(spec, out=out)
    chosen = None if sparsity is not None else choose(results, trial=trial, max_ms=max_latency)
    supernet = open_supernet(spec)
    wanted = chosen.sparsity if chosen is not None else supernet.space.parse(sparsity)
    path = write(supernet.evaluator, results, wanted, output or spec.folder(out) / FINETUNE)
    if chosen is not None and chosen.measured is None:
        console.print(f"note: trial {chosen.number} is not confirmed: {chosen.predicted_ms:.4g} ms are predicted")
    console.print(f"{wanted} -> {path}\nnext: sparsevit finetune {shlex.quote(str(path))}", markup=False)
