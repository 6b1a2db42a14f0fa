"""Panels: the parts of a page that answer to the user."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from dash import dcc, html

from sparsevit.dashboard.figures.compare import compare
from sparsevit.dashboard.figures.style import sentence
from sparsevit.dashboard.server.facts import facts, share_done
from sparsevit.dashboard.server.layout import GRAPH, bar_picture, choices, facts_list, height_of, message
from sparsevit.dashboard.server.live import LiveStudy, Studies
from sparsevit.dashboard.server.pictures import overlay
from sparsevit.dashboard.server.supernet import LazySupernet
from sparsevit.dashboard.server.thin import thin
from sparsevit.dashboard.text import accuracy_text, figure_of, metric_label, ms_text, shown_metrics
from sparsevit.errors import UserError
from sparsevit.search.export import choose
from sparsevit.search.results import StudyResults
from sparsevit.search.scene import Scene
from sparsevit.sparsity import Sparsity

COMPARED = 6
"""Studies that one chart shows at most; more colours cannot be told apart."""


def facts_panel(results: StudyResults) -> Any:
    """The state of the search; `facts-now` is filled again as it changes."""
    return html.Div(facts_now(results), id="facts-now")


def facts_now(results: StudyResults) -> Any:
    return facts_list(facts(results), share_done(results))


def pick_panel(results: StudyResults, study: str, exports: bool) -> Any:
    """A slider for the latency budget, and the best configuration known within it."""
    known = sorted(one.judged_ms for one in results.trials)
    if not known:
        return html.Div(message("No trial has finished yet: configurations to pick from will stand here."))
    low, high = known[0], max(known[-1], results.bounds.max_ms)
    start = min(max(results.bounds.max_ms, low), high)
    step = max((high - low) / 200, 0.001)
    marks = {_rounded(low + (high - low) * i / 4): f"{low + (high - low) * i / 4:.4g}" for i in range(5)}
    return html.Div(
        [
            html.Label("latency budget, ms", htmlFor="budget"),
            html.Div(
                dcc.Slider(
                    id="budget", min=_rounded(low), max=_rounded(high + step), value=_rounded(start),
                    step=_rounded(step), marks=marks,
                ),
                className="budget",
            ),
            html.Div(picked(results, study, start, exports), id="picked"),
        ]
    )  # fmt: skip


def picked(results: StudyResults, study: str, budget_ms: float, exports: bool) -> Any:
    """The best configuration within a budget: its ratios, its figures, and its finetune config to take away."""
    try:
        # Steps of the slider are rounded; that must not lose the trial at its very end.
        trial = choose(results, max_ms=budget_ms * (1 + 1e-6))
    except UserError as error:
        return message(f"{error}.")
    accuracy = trial.confirmed if trial.confirmed is not None else trial.accuracy
    images = results.images_confirm if trial.confirmed is not None else results.images_search
    rows = [
        (metric_label(metric), accuracy_text(figure_of(accuracy, metric)))
        for metric in shown_metrics(results.metric, results.metrics)
    ]
    rows += [
        ("on images", str(images or "all") + ("" if trial.confirmed is not None else " (not confirmed)")),
        ("predicted", f"{ms_text(trial.predicted_ms)} ms"),
        ("measured", f"{ms_text(trial.measured.median_ms)} ms" if trial.measured else "not measured"),
    ]
    link = html.A(
        "Download its finetune config", download="", className="button",
        href="/finetune?" + urlencode({"study": study, "trial": trial.number}),
    )  # fmt: skip
    command = html.P(["or: ", html.Code(f"sparsevit export STUDY.toml --trial {trial.number}")], className="muted")
    return html.Div(
        [
            html.H3(f"trial {trial.number}: {trial.sparsity}"),
            bar_picture(results.layer_names, trial.sparsity),
            html.Dl([part for name, text in rows for part in (html.Dt(name), html.Dd(text))]),
            html.P(link) if exports else None,
            command,
        ],
        className="card",
    )


def windows_panel(results: StudyResults) -> Any:
    """Which configuration, which image; `windows-shown` is filled once the supernet is there."""
    options = choices(results)
    value = str(results.best.sparsity) if results.best else options[0]["value"] if options else None
    if results.best and value not in {one["value"] for one in options}:
        options.append({"label": f"best: {value}", "value": str(value)})
    return html.Div(
        [
            html.Div(
                [
                    html.Label("configuration", htmlFor="windows-of"),
                    dcc.Dropdown(options, value, id="windows-of", clearable=False),
                    html.Label("image", htmlFor="windows-image"),
                    dcc.Input(id="windows-image", type="number", min=0, step=1, value=0, debounce=True),
                ],
                className="choices",
            ),
            html.Div(id="windows-shown"),
            dcc.Store(id="windows-done"),
        ]
    )


def windows_shown(
    results: StudyResults, study: str, supernet: LazySupernet, sparsity: str | None, image: int | None
) -> Any:
    """The image with what is detected, then with what each layer skips.

    Raises:
        UserError: if there is nothing to show; a LoadingError if there will be.
    """
    if sparsity is None:
        raise UserError("No trial within the bounds yet: its windows will stand here")
    place = int(image or 0)
    scene = supernet.scene(Sparsity.parse(sparsity), place)
    source = "/picture?" + urlencode({"study": study, "image": place})
    tiles = [_tile(source, _boxes(scene), f"{len(scene.detections)} detections", "the subnet's own")]
    tiles += [
        _tile(
            source, [html.Img(src=overlay(layer), alt="", className="overlay")], name,
            f"keeps {layer.kept} of {layer.windows} windows",
        )
        for name, layer in zip(results.layer_names, scene.layers, strict=True)
    ]  # fmt: skip
    note = "Dark windows are skipped by both blocks of a layer, half dark ones by one of them."
    return html.Div([html.Div(tiles, className="tiles"), html.P(note, className="muted")])


def compare_panel(studies: Studies, current: str) -> Any:
    """Which studies, and the chart of their fronts."""
    names = list(studies.all())
    first = [current, *(name for name in names if name != current)][:COMPARED]
    return html.Div(
        [
            dcc.Dropdown(names, first, id="compared", multi=True, placeholder="studies"),
            dcc.Graph(id="comparison", figure=sentence("The studies are being read."), config=GRAPH, className="plot"),
            dcc.Store(id="comparison-stamp"),
            html.P(
                "A chart for each target, as latencies of different targets do not compare. More databases: "
                "sparsevit dashboard STUDY.toml --compare OTHER.toml",
                className="muted",
            ),
        ]
    )


def compared(studies: Studies, names: list[str]) -> tuple[str, Any, dict[str, str]]:
    """A stamp of all these studies, the chart, and its height; names that are no study's are left out."""
    known = studies.all()
    shown: dict[str, LiveStudy] = {name: known[name] for name in names[:COMPARED] if name in known}
    moments = {name: study.now() for name, study in shown.items()}
    drawn = thin(compare({name: results for name, (_, results) in moments.items()}))
    return " ".join([*shown, *(stamp for stamp, _ in moments.values())]), drawn, height_of(drawn)


def comparison_stamp(studies: Studies, names: list[str]) -> str:
    """The stamp that `compared` would give now."""
    known = studies.all()
    shown = [name for name in names[:COMPARED] if name in known]
    return " ".join([*shown, *(known[name].stamp() for name in shown)])


def _tile(source: str, over: list[Any], name: str, text: str) -> Any:
    return html.Figure(
        [
            html.Div([html.Img(src=source, alt="the image"), *over], className="picture"),
            html.Figcaption([html.B(name), " ", text]),
        ]
    )


def _boxes(scene: Scene) -> list[Any]:
    return [
        html.Div(
            html.Span(f"{one.label} {one.score:.2f}"),
            className="box",
            style={
                "left": f"{100 * one.left:.2f}%",
                "top": f"{100 * one.top:.2f}%",
                "width": f"{100 * (one.right - one.left):.2f}%",
                "height": f"{100 * (one.bottom - one.top):.2f}%",
            },
        )
        for one in scene.detections
    ]


def _rounded(value: float) -> float:
    return round(value, 3)
