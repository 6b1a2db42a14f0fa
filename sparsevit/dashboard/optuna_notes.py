"""What stock optuna-dashboard is given to show with a study: notes, plots, and artifacts of the trials on the front."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from sparsevit.console import console
from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.figures.style import note
from sparsevit.dashboard.optuna_artifacts import attach
from sparsevit.dashboard.optuna_texts import study_note, trial_note
from sparsevit.dashboard.windows_sheet import windows_sheet
from sparsevit.errors import first_line
from sparsevit.search.evaluator import Exporter
from sparsevit.search.export import export
from sparsevit.search.ledger import digest
from sparsevit.search.results import StudyResults, TrialResult
from sparsevit.search.scene import Illustrated

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

    from sparsevit.search.evaluator import Evaluator

PLOTS = ("front", "ratios_along_front", "predicted_vs_measured", "layer_sensitivity")
"""Figures among optuna-dashboard's user-defined plots."""

DRAWN = 300
"""Trials in a plot, besides those that matter: optuna-dashboard sends every plot with every poll."""

CARD = 430
"""Pixels in height that optuna-dashboard has for a plot."""

CONFIG = "finetune.py"
PICTURE = "windows.jpg"

_OURS = "sparsevit:notes"
"""System attribute of a study: digests of the notes as they were written here."""


def annotate(
    study: Study, results: StudyResults, evaluator: Evaluator, folder: Path, typed: str = "STUDY.toml"
) -> None:
    """Give a study its notes, plots and artifacts, or bring them up to date.

    A note that a person has changed stays as it is, and an artifact that was deleted stays away. Nothing in here is
    worth a search: what goes wrong is one line on the console.

    Args:
        study: open for writing.
        results: of that study.
        evaluator: writes finetune configs and shows scenes, if it can.
        folder: of the study's results; artifacts go below it, to `artifacts`.
        typed: the study file as it is typed in a shell.
    """
    if find_spec("optuna_dashboard") is None:
        console.print("note: without the extra 'dashboard', optuna-dashboard shows this study without notes and plots")
        return
    try:
        _write_notes(study, results, typed)
        _save_plots(study, results)
        _attach_configs(study, results, evaluator, folder)
        _attach_pictures(study, results, evaluator, folder)
    except Exception as error:  # whatever it is: the search has what it was started for
        console.print(f"note: optuna-dashboard shows less of this study: {first_line(error)}", markup=False)


@dataclass(frozen=True)
class _Noted:
    """What optuna-dashboard's `save_note` looks at in a trial; Optuna's own class is for trials that run."""

    study: Study
    storage: BaseStorage
    _trial_id: int


def _write_notes(study: Study, results: StudyResults, typed: str) -> None:
    from optuna_dashboard import get_note, save_note

    ours: dict[str, str] = dict(study._storage.get_study_system_attrs(study._study_id).get(_OURS, {}))
    known = dict(ours)
    places = {one.number: one._trial_id for one in study.get_trials(deepcopy=False)}
    texts: dict[str, str] = {"study": study_note(results, typed)}
    # A trial that has left the front loses its note.
    texts |= {key: "" for key in ours if key != "study"}
    texts |= {str(one.number): trial_note(results, one, typed) for one in results.front}
    for key, text in texts.items():
        owner: Any = study if key == "study" else _Noted(study, study._storage, places[int(key)])
        present = get_note(owner)
        if present and digest(present) != ours.get(key):
            known.pop(key, None)  # somebody's own words
            continue
        if present != text:
            save_note(owner, text)
        known[key] = digest(text)
        if not text:
            del known[key]
    if known != ours:
        study._storage.set_study_system_attr(study._study_id, _OURS, known)


def _save_plots(study: Study, results: StudyResults) -> None:
    from optuna_dashboard import save_plotly_graph_object

    stored = study._storage.get_study_system_attrs(study._study_id)
    for name, drawn in plots(results):
        parts = [value for key, value in stored.items() if key.startswith(f"dashboard:plot_data:{name}:")]
        if "".join(parts) != drawn.to_json():
            save_plotly_graph_object(study, drawn, graph_object_id=name)


def plots(results: StudyResults) -> Iterator[tuple[str, go.Figure]]:
    """The plots by name, with their titles in them; at most some 200 kB of JSON each, however many trials there are."""
    few = replace(results, trials=_some(results))
    for name in PLOTS:
        kind = FIGURES[name]
        drawn = kind.draw(few if name == "front" else results)
        said = drawn.layout.title.text
        note(drawn, f"<b>{kind.title}</b>" + (f" · {said}" if said else ""))
        # The page always shows these buttons, and they would lie over the title.
        spared = ["toImage", "zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale"]
        drawn.update_layout(height=min(drawn.layout.height, CARD), modebar_remove=spared)
        yield name, drawn


def _some(results: StudyResults) -> Sequence[TrialResult]:
    """All trials that stand out, and of the others as many as are drawn, evenly over the search."""
    kept = {one.number for one in results.front}
    others = [one for one in results.trials if one.number not in kept and one.confirmed is None]
    step = -(-len(others) // DRAWN) or 1
    shown = kept | {one.number for one in others[::step]}
    return [one for one in results.trials if one.number in shown or one.confirmed is not None]


def _attach_configs(study: Study, results: StudyResults, evaluator: Evaluator, folder: Path) -> None:
    if not isinstance(evaluator, Exporter):
        return

    def config(trial: TrialResult) -> Callable[[], bytes]:
        def write() -> bytes:
            # Below the system's own folder a config names its base by its whole path, so that it works anywhere.
            with tempfile.TemporaryDirectory() as place:
                return export(evaluator, results, trial.sparsity, Path(place) / CONFIG).read_bytes()

        return write

    for trial in results.front:
        attach(study, trial.number, CONFIG, config(trial), folder)


def _attach_pictures(study: Study, results: StudyResults, evaluator: Evaluator, folder: Path) -> None:
    """What each confirmed trial of the front keeps of the first image; a picture costs a pass of the detector."""
    if not isinstance(evaluator, Illustrated) or find_spec("PIL") is None or not evaluator.scenes():
        return

    def picture(trial: TrialResult) -> Callable[[], bytes]:
        return lambda: windows_sheet(evaluator.scene(trial.sparsity, 0), results.layer_names)

    for trial in results.front:
        if trial.confirmed is not None:
            attach(study, trial.number, PICTURE, picture(trial), folder, renew=False)
