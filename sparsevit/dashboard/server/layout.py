"""What pages are made of: a frame with links, sections, figures that follow the search, and panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import plotly.graph_objects as go
from dash import dcc, html

from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.report import Fact
from sparsevit.dashboard.server.pages import LivePage
from sparsevit.search.results import StudyResults, TrialResult
from sparsevit.sparsity import Sparsity

TICK_MS = 3000
GRAPH: Any = {
    "responsive": True,
    "displaylogo": False,
    "displayModeBar": "hover",
    "modeBarButtonsToRemove": ["lasso2d", "select2d"],
}


def frame() -> Any:
    """What stands on every page; its content comes with the address."""
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="tick", interval=TICK_MS),
            html.Div(id="page"),
        ]
    )


def header(pages: Mapping[str, LivePage], current: str, studies: Sequence[str], study: str) -> Any:
    """Links to all pages and studies, and to optuna-dashboard."""
    links = [
        dcc.Link(page.title, href=address(slug, study), className="here" if slug == current else "")
        for slug, page in pages.items()
    ]
    others = [
        dcc.Link(name, href=address(current, name), className="here" if name == study else "") for name in studies
    ]
    return html.Header(
        [
            html.Nav([*links, html.A("Optuna ↗", href="/dashboard", target="_blank")], className="pages"),
            html.Nav([html.Span("study"), *others], className="studies") if len(others) > 1 else None,
        ]
    )


def address(page: str, study: str) -> str:
    """Where a page of a study is found."""
    return f"/{page}?{urlencode({'study': study})}"


def title(page: LivePage, results: StudyResults) -> Any:
    return html.Div([html.H1(f"{results.name}: {page.title.lower()}"), html.P(results.target, className="muted")])


def figure_block(name: str, drawn: go.Figure, stamp: str) -> Any:
    """A figure with its title and its sentence; `stamp` says of which moment it is."""
    kind = FIGURES[name]
    return html.Figure(
        [
            html.H3(kind.title),
            dcc.Graph(
                id={"kind": "figure", "name": name}, figure=drawn, config=GRAPH, style=height_of(drawn),
                className="plot",
            ),
            dcc.Store(id={"kind": "stamp", "name": name}, data=stamp),
            html.Figcaption(kind.explanation),
        ]
    )  # fmt: skip


def height_of(drawn: go.Figure) -> dict[str, str]:
    return {"height": f"{drawn.layout.height or 440}px"}


def facts_list(facts: Sequence[Fact], share: float) -> Any:
    """Figures with their names, under a bar that shows how far the search is."""
    return html.Div(
        [
            html.Div(html.Div(style={"width": f"{share:.1%}"}), className="progress", title=f"{share:.0%} done"),
            html.Ul(
                [html.Li([html.Strong(one.value), html.Span(one.name), html.Small(one.remark)]) for one in facts],
                className="facts",
            ),
        ]
    )


def message(text: str) -> Any:
    return html.P(text, className="message")


def bar_picture(names: Sequence[str], sparsity: Sparsity) -> Any:
    """A configuration as bars: a column per layer, as high as the share of windows it skips."""
    return html.Div(
        [
            html.Div(
                [
                    html.Div(html.Div(style={"height": f"{float(value):.0%}"}), className="bar"),
                    html.B(f"{value:f}"),
                    html.Small(name),
                ],
                title=f"{name} skips {float(value):.0%} of its windows",
            )
            for name, value in zip(names, sparsity.flat, strict=True)
        ],
        className="bars",
    )


def choices(results: StudyResults) -> list[dict[str, str]]:
    """Configurations that may be looked at, fastest first, and dense."""
    trials: list[TrialResult] = sorted(results.front, key=lambda one: one.judged_ms)
    listed = [
        {"label": f"trial {one.number}: {one.sparsity} ({one.judged_ms:.4g} ms)", "value": str(one.sparsity)}
        for one in trials
    ]
    dense = next((str(one.sparsity) for one in results.references if one.sparsity.is_dense), None)
    return listed + ([{"label": "dense", "value": dense}] if dense else [])
