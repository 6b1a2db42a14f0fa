"""`sparsevit report`: a study as one HTML page, or its front as a table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsevit.cli.options import Out, Settings, StudyFile
from sparsevit.console import console


class Format(StrEnum):
    """What a report can be written as."""

    HTML = "html"
    MD = "md"
    CSV = "csv"
    PARQUET = "parquet"


def report(
    study: StudyFile,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; by default report.html in the folder of the results."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="The page, or the front as a table; text is printed unless -o is given.")
    ] = Format.HTML,
    page: Annotated[
        Path | None, typer.Option("--page", help="Which figures, as TOML; by default dashboards/report.toml.")
    ] = None,
    out: Out = None,
    setting: Settings = None,
) -> None:
    """Write what is known about a study as one HTML page that opens offline, or its front as Markdown, CSV or Parquet.

    Example: sparsevit report studies/digits.toml --format csv -o front.csv
    """
    import shlex

    from sparsevit.dashboard.page import Page
    from sparsevit.dashboard.report import write_bytes, write_report, write_text
    from sparsevit.dashboard.tables import to_csv, to_markdown, to_parquet
    from sparsevit.errors import UserError
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec

    if page is not None and form is not Format.HTML:
        raise UserError(f"--page is for --format html, not for {form}: a table has no figures")
    if form is Format.PARQUET and output is None:
        raise UserError("--format parquet is no text to print: name its file with -o")
    spec = StudySpec.load(study, setting or [])
    chosen = None if page is None else Page.load(page)
    results = load_results(spec, out=out)
    if form is Format.HTML:
        typed = shlex.quote(str(study))
        written = write_report(results, output or spec.folder(out) / "report.html", page=chosen, study=typed)
        console.print(f"report: {written}", markup=False)
        return
    if form is Format.PARQUET and output is not None:
        write_bytes(output, to_parquet(results))
    else:
        text = to_markdown(results) if form is Format.MD else to_csv(results)
        if output is None:
            typer.echo(text, nl=False)
            return
        write_text(output, text)
    console.print(f"table: {output}", markup=False)
