"""`sparsevit dashboard`: a study in the browser, while it runs and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.cli.options import Out, Settings

if TYPE_CHECKING:
    from sparsevit.search.spec import StudySpec


def dashboard(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="The study file.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="A database in place of a study file: sqlite:///study.db")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="STUDY.toml", help="Another study to show and compare; may be given several times."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve on; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
    token: Annotated[
        str | None,
        typer.Option(envvar="SPARSEVIT_DASHBOARD_TOKEN", help="What visitors show; made up where one is needed."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name to answer to, as behind a proxy.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Let optuna-dashboard change notes and delete studies.")
    ] = False,
    pages: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Pages as TOML; by default dashboards/pages.")
    ] = (None),
    out: Out = None,
    setting: Settings = None,
) -> None:
    """Show a study in the browser, live: progress, front, layers, latency, windows; and optuna-dashboard beside it.

    Example: sparsevit dashboard studies/digits.toml
    """
    from sparsevit.console import console
    from sparsevit.dashboard.server.serve import Access, build, serve
    from sparsevit.errors import UserError
    from sparsevit.search.spec import StudySpec
    from sparsevit.search.storage import check_storage, sqlite_file

    if (study is None) == (storage is None):
        raise UserError("give a study file or --storage URL: sparsevit dashboard studies/digits.toml")
    access = Access(host, port, token, tuple(allow_host or ()), write).checked()
    given: dict[str, tuple[StudySpec, str, Path | None]] = {}
    if study is not None:
        spec = StudySpec.load(study, setting or [])
        urls, folder = [spec.url(out)], spec.folder(out)
        given[f"{urls[0]} {spec.name}"] = (spec, str(study), out)
    else:
        assert storage is not None
        file = sqlite_file(check_storage(storage, writing=False))
        urls, folder = [storage], file.parent if file else Path()
    for other in compare or []:
        spec = StudySpec.load(other)
        urls.append(spec.url())
        given.setdefault(f"{urls[-1]} {spec.name}", (spec, str(other), None))
    app = build(urls, given, access, artifacts=folder / "artifacts", pages=pages)
    serve(app, access, lambda line: console.print(line, markup=False, soft_wrap=True))
