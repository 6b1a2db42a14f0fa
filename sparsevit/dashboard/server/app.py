"""The Dash app: an address becomes a page, and a page follows its study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import flask
import plotly.graph_objects as go
from dash import MATCH, Dash, Input, Output, State, ctx, html, no_update
from dash.exceptions import DependencyException, InvalidResourceError, PreventUpdate

from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.server import layout, panels
from sparsevit.dashboard.server.live import LiveStudy, Studies
from sparsevit.dashboard.server.pages import LivePage
from sparsevit.dashboard.server.pictures import image_png
from sparsevit.dashboard.server.supernet import LazySupernet, LoadingError
from sparsevit.dashboard.server.thin import thin
from sparsevit.errors import UserError
from sparsevit.search.export import choose

ASSETS = Path(__file__).with_name("assets")
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


class Supernets:
    """One supernet for each study that a study file was given for."""

    def __init__(self) -> None:
        self._known: dict[str, LazySupernet] = {}

    def of(self, key: str, study: LiveStudy) -> LazySupernet:
        return self._known.setdefault(key, LazySupernet(study.spec))


def make_app(studies: Studies, pages: Mapping[str, LivePage]) -> Dash:
    """The app over these studies and pages; nothing in it writes to a database."""
    app = Dash(
        "sparsevit",
        title="SparseViT search",
        update_title="",
        assets_folder=str(ASSETS),
        suppress_callback_exceptions=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        index_string=_INDEX,
        on_error=_as_it_was,
    )
    app.layout = layout.frame
    for unknown in (DependencyException, InvalidResourceError):  # a file that no package of Dash's has
        app.server.register_error_handler(unknown, lambda _: flask.Response("not found\n", 404, mimetype="text/plain"))
    supernets = Supernets()
    _add_pages(app, studies, pages)
    _add_figures(app, studies)
    _add_panels(app, studies, supernets)
    _add_files(app.server, studies, supernets)
    return app


def _as_it_was(error: Exception) -> None:
    """Where a page cannot follow its study any more, what is shown stays; all but a user's errors are ours."""
    if not isinstance(error, UserError):
        raise error


def study_in(search: str | None) -> str | None:
    """The study that an address names after its `?`."""
    return parse_qs((search or "").lstrip("?")).get("study", [None])[0]


def _add_pages(app: Dash, studies: Studies, pages: Mapping[str, LivePage]) -> None:
    @app.callback(Output("page", "children"), Input("url", "pathname"), Input("url", "search"))
    def page(path: str | None, search: str | None) -> Any:
        slug = (path or "/").strip("/") or next(iter(pages))
        name = study_in(search)
        try:
            study = studies.get(name)
            name = next(key for key, one in studies.all().items() if one is study)
            top = layout.header(pages, slug, list(studies.all()), name)
            if slug not in pages:
                return [top, html.Main(layout.message(f"There is no page {slug!r}: the links above lead to all."))]
            _, results = study.now()
            blocks = [_section(studies, study, name, section) for section in pages[slug].sections]
            return [top, html.Main([layout.title(pages[slug], results), *blocks])]
        except UserError as error:
            return html.Main(layout.message(f"{error}."))


def _section(studies: Studies, study: LiveStudy, name: str, section: Any) -> Any:
    _, results = study.now()
    made = {
        "facts": lambda: panels.facts_panel(results),
        "pick": lambda: panels.pick_panel(results, name, study.spec is not None),
        "windows": lambda: panels.windows_panel(results),
        "compare": lambda: panels.compare_panel(studies, name),
    }
    blocks = [made[panel]() for panel in section.panels]
    for figure in section.figures:
        stamp, drawn = _drawn(study, figure)
        blocks.append(layout.figure_block(figure, drawn, stamp))
    return html.Section([html.H2(section.heading), *blocks])


def _drawn(study: LiveStudy, figure: str) -> tuple[str, go.Figure]:
    """A figure as of now, thinned, and the stamp of that moment."""
    draw = FIGURES[figure].draw
    return study.made(figure, lambda results: thin(draw(results)))


def _add_figures(app: Dash, studies: Studies) -> None:
    @app.callback(
        Output({"kind": "figure", "name": MATCH}, "figure"),
        Output({"kind": "figure", "name": MATCH}, "style"),
        Output({"kind": "stamp", "name": MATCH}, "data"),
        Input("tick", "n_intervals"),
        State({"kind": "stamp", "name": MATCH}, "data"),
        State({"kind": "stamp", "name": MATCH}, "id"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def follow(_: int, seen: str, name: dict[str, str], search: str | None) -> Any:
        study = studies.get(study_in(search))
        if name["name"] not in FIGURES or study.stamp() == seen:
            raise PreventUpdate
        stamp, drawn = _drawn(study, name["name"])
        return drawn, layout.height_of(drawn), stamp


def _add_panels(app: Dash, studies: Studies, supernets: Supernets) -> None:
    @app.callback(
        Output("facts-now", "children"), Input("tick", "n_intervals"), State("url", "search"), prevent_initial_call=True
    )
    def follow_facts(_: int, search: str | None) -> Any:
        return panels.facts_now(studies.get(study_in(search)).now()[1])

    @app.callback(
        Output("picked", "children"), Input("budget", "value"), State("url", "search"), prevent_initial_call=True
    )
    def pick(budget: float, search: str | None) -> Any:
        study = studies.get(study_in(search))
        name = next(key for key, one in studies.all().items() if one is study)
        return panels.picked(study.now()[1], name, float(budget), study.spec is not None)

    @app.callback(
        Output("windows-shown", "children"),
        Output("windows-done", "data"),
        Input("windows-of", "value"),
        Input("windows-image", "value"),
        Input("tick", "n_intervals"),
        State("windows-done", "data"),
        State("url", "search"),
    )
    def show_windows(sparsity: str | None, image: int | None, _: int, done: Any, search: str | None) -> Any:
        if done == [sparsity, image] and ctx.triggered_id == "tick":
            raise PreventUpdate
        study = studies.get(study_in(search))
        name = next(key for key, one in studies.all().items() if one is study)
        try:
            shown = panels.windows_shown(study.now()[1], name, supernets.of(name, study), sparsity, image)
        except LoadingError as error:
            return layout.message(str(error)), no_update
        except UserError as error:
            shown = layout.message(f"{error}.")
        return shown, [sparsity, image]

    @app.callback(
        Output("comparison", "figure"),
        Output("comparison", "style"),
        Output("comparison-stamp", "data"),
        Input("compared", "value"),
        Input("tick", "n_intervals"),
        State("comparison-stamp", "data"),
    )
    def follow_comparison(names: list[str] | None, _: int, seen: str | None) -> Any:
        if panels.comparison_stamp(studies, names or []) == seen:
            raise PreventUpdate
        stamp, drawn, style = panels.compared(studies, names or [])
        return drawn, style, stamp


def _add_files(server: flask.Flask, studies: Studies, supernets: Supernets) -> None:
    @server.get("/finetune")
    def finetune() -> Any:
        """The finetune config of a trial, to be kept."""
        name, number = flask.request.args.get("study"), flask.request.args.get("trial", type=int)
        try:
            study = studies.get(name)
            _, results = study.now()
            trial = choose(results, trial=-1 if number is None else number)
            text = supernets.of(name or study.name, study).finetune_config(results, trial.sparsity)
        except UserError as error:
            return flask.Response(f"{error}\n", 404, mimetype="text/plain")
        file = f"finetune_{re.sub(r'[^A-Za-z0-9._-]', '_', study.name)}_trial{trial.number}.py"
        answer = flask.Response(text, mimetype="text/x-python")
        answer.headers["Content-Disposition"] = f'attachment; filename="{file}"'
        return answer

    @server.get("/picture")
    def picture() -> Any:
        """An image of a study's data set, as the windows page shows it."""
        name, index = flask.request.args.get("study"), flask.request.args.get("image", 0, type=int)
        try:
            study = studies.get(name)
            dense = next(one.sparsity for one in study.now()[1].references)
            scene = supernets.of(name or study.name, study).scene(dense, index)
        except (UserError, StopIteration) as error:
            return flask.Response(f"{error}\n", 404, mimetype="text/plain")
        answer = flask.Response(image_png(scene.image), mimetype="image/png")
        answer.headers["Cache-Control"] = "private, max-age=3600"
        return answer
