"""What optuna-dashboard is given to show: on real studies, read back as its own page reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import create_trial

from sparsevit.dashboard import optuna_notes
from sparsevit.dashboard.optuna_artifacts import ARTIFACTS
from sparsevit.dashboard.optuna_notes import annotate, plots
from sparsevit.dashboard.optuna_texts import study_note, trial_note
from sparsevit.search.results import StudyResults
from sparsevit.search.scene import LayerWindows, Scene
from sparsevit.search.storage import open_storage
from sparsevit.sparsity import Sparsity, SparsitySpace

SPACE = SparsitySpace()


class Exports:
    """An evaluator that can do nothing but export."""

    def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
        path.write_text(f"# {provenance[0]}\nratios = {sparsity.floats}\n")
        return path


def make(results: StudyResults, folder: Path) -> Study:
    """The study whose results these are, in a database."""
    study = optuna.create_study(
        study_name=results.name,
        storage=open_storage(f"sqlite:///{folder / 'study.db'}"),
        directions=["maximize", "minimize"],
    )
    space: dict[str, BaseDistribution] = {name: IntDistribution(0, 8) for name in SPACE.layer_names}
    study.add_trials(
        [
            create_trial(
                params=dict(zip(space, SPACE.encode(one.sparsity), strict=True)),
                distributions=space,
                values=[one.accuracy["bbox_mAP"], one.predicted_ms],
            )
            for one in results.trials
        ]
    )
    return study


def shown(study: Study) -> dict[str, Any]:
    """The study as optuna-dashboard's page gets it."""
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
    from optuna_dashboard._serializer import serialize_study_detail  # what its API answers with

    (frozen,) = study._storage.get_all_studies()
    trials = study.get_trials()
    drawn = get_plotly_graph_objects(frozen.system_attrs)
    return serialize_study_detail(frozen, [], trials, [], [], [], False, drawn, [])  # type: ignore[no-any-return]


def notes(study: Study) -> dict[int, str]:
    return {one["number"]: one["note"]["body"] for one in shown(study)["trials"] if one["note"]["body"]}


@pytest.fixture
def small(finished: StudyResults) -> StudyResults:
    """The finished study with a front of three."""
    return replace(finished, front=finished.front[-3:])


@pytest.fixture
def study(small: StudyResults, tmp_path: Path) -> Study:
    made = make(small, tmp_path)
    annotate(made, small, Exports(), tmp_path, "studies/digits.toml")  # type: ignore[arg-type]
    return made


def test_a_study_has_its_note_and_each_trial_on_the_front_its_own(study: Study, small: StudyResults) -> None:
    assert shown(study)["note"]["body"] == study_note(small, "studies/digits.toml")
    assert notes(study) == {one.number: trial_note(small, one, "studies/digits.toml") for one in small.front}
    best = small.best
    assert best is not None
    assert best.measured is not None
    text = notes(study)[best.number]
    assert f"The best within the bounds: **{best.sparsity}**" in text
    assert f"{best.measured.median_ms:.2f} \\[" in text
    assert f"    sparsevit export studies/digits.toml --trial {best.number}" in text
    assert "× as fast as dense" in text


def test_plots_are_the_projects_own_figures(study: Study, small: StudyResults) -> None:
    saved = {one["id"]: json.loads(one["graph_object"]) for one in shown(study)["plotly_graph_objects"]}
    assert set(saved) == {"front", "ratios_along_front", "predicted_vs_measured", "layer_sensitivity"}
    assert saved["front"]["data"][0]["x"]
    assert "Accuracy against latency" in saved["front"]["layout"]["title"]["text"]
    assert "R²" in saved["layer_sensitivity"]["layout"]["title"]["text"]


def test_the_finetune_config_hangs_on_each_trial_of_the_front(
    study: Study, small: StudyResults, tmp_path: Path
) -> None:
    hung = {one["number"]: one["artifacts"] for one in shown(study)["trials"] if one["artifacts"]}
    assert set(hung) == {one.number for one in small.front}
    for trial in small.front:
        (artifact,) = hung[trial.number]
        assert artifact["filename"] == "finetune.py"
        stored = (tmp_path / ARTIFACTS / artifact["artifact_id"]).read_text()
        assert stored == f"# study: digits\nratios = {trial.sparsity.floats}\n"
    assert len(list((tmp_path / ARTIFACTS).iterdir())) == len(small.front)


def test_again_changes_nothing(study: Study, small: StudyResults, tmp_path: Path) -> None:
    before = shown(study)
    annotate(study, small, Exports(), tmp_path, "studies/digits.toml")  # type: ignore[arg-type]
    assert shown(study) == before
    assert len(list((tmp_path / ARTIFACTS).iterdir())) == len(small.front)


def test_a_new_front_is_brought_up_to_date(study: Study, small: StudyResults, tmp_path: Path) -> None:
    later = replace(small, front=small.front[1:], best=small.front[1])
    annotate(study, later, Exports(), tmp_path)  # type: ignore[arg-type]
    assert set(notes(study)) == {one.number for one in later.front}
    assert "The best within" in notes(study)[small.front[1].number]
    assert "On the front" in notes(study)[small.front[2].number]
    saved = {one["id"]: json.loads(one["graph_object"]) for one in shown(study)["plotly_graph_objects"]}
    assert len(saved["ratios_along_front"]["data"][0]["x"]) == 2


def test_what_a_person_wrote_or_deleted_stays_so(study: Study, small: StudyResults, tmp_path: Path) -> None:
    from optuna_dashboard import save_note
    from optuna_dashboard.artifact import _backend

    first = small.front[0].number
    owner = optuna_notes._Noted(study, study._storage, study.trials[first]._trial_id)
    save_note(owner, "mine")
    save_note(study, "mine too")
    (artifact,) = next(one for one in shown(study)["trials"] if one["number"] == first)["artifacts"]
    key = _backend._dashboard_artifact_prefix(study.trials[first]._trial_id) + artifact["artifact_id"]
    study._storage.set_study_system_attr(study._study_id, key, json.dumps(None))
    for front in (small.front, small.front[1:]):
        annotate(study, replace(small, front=front), Exports(), tmp_path)  # type: ignore[arg-type]
        assert notes(study)[first] == "mine"
        assert shown(study)["note"]["body"] == "mine too"
        assert next(one for one in shown(study)["trials"] if one["number"] == first)["artifacts"] == []


@pytest.mark.parametrize("kind", ["empty", "infeasible"])
def test_studies_without_a_result_say_so(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(kind)
    made = make(results, tmp_path)
    annotate(made, results, Exports(), tmp_path)  # type: ignore[arg-type]
    assert "No trial within the bounds yet." in shown(made)["note"]["body"]
    assert notes(made) == {}
    assert len(shown(made)["plotly_graph_objects"]) == 4
    assert not (tmp_path / ARTIFACTS).exists()


def test_plots_stay_small_with_ten_thousand_trials(finished: StudyResults) -> None:
    many = [replace(one, number=i, confirmed=None, measured=None) for i, one in enumerate([*finished.trials] * 167)]
    drawn = dict(plots(replace(finished, trials=many)))
    assert all(len(one.to_json()) < 200_000 for one in drawn.values())
    seen = sum(len(trace.x) for trace in drawn["front"].data)
    assert 250 < seen < 400


def test_names_stay_text(small: StudyResults) -> None:
    evil = "<script>alert(1)</script> [x](javascript:alert(2)) | `a` *b* _c_ \n# d"
    results = replace(small, name=evil, target=evil, layer_names=[evil] * 6)
    for text in (study_note(results, evil), trial_note(results, small.front[0], evil)):
        code = [line for line in text.splitlines() if line.startswith("    ")]
        rest = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
        assert all(line.startswith("    sparsevit ") for line in code)
        assert not re.search(r"(?<!\\)([<>`]|\]\()", rest)
        assert "\n# d" not in text
        assert not re.search(r"(?<!\\)_c", rest)


class TestPictures:
    """Of evaluators that show scenes."""

    class Shows(Exports):
        def __init__(self) -> None:
            self.asked: list[tuple[str, int]] = []

        def scenes(self) -> int:
            return 5

        def scene(self, sparsity: Sparsity, index: int) -> Scene:
            self.asked.append((str(sparsity), index))
            layers = [LayerWindows(1, 4, np.ones((4, 4)))] * len(sparsity.flat)
            return Scene(np.zeros((8, 8, 3), np.uint8), layers, [])

    def test_windows_hang_on_each_confirmed_trial_of_the_front(self, small: StudyResults, tmp_path: Path) -> None:
        pytest.importorskip("PIL")
        first, *confirmed = small.front
        results = replace(small, front=[replace(first, confirmed=None, measured=None), *confirmed])
        made, evaluator = make(results, tmp_path), self.Shows()
        for _ in range(2):  # the second time they are there
            annotate(made, results, evaluator, tmp_path)  # type: ignore[arg-type]
        assert evaluator.asked == [(str(one.sparsity), 0) for one in confirmed]
        hung = {one["number"]: one["artifacts"] for one in shown(made)["trials"] if one["artifacts"]}
        assert [artifact["filename"] for artifact in hung[first.number]] == ["finetune.py"]
        for trial in confirmed:
            (picture,) = (one for one in hung[trial.number] if one["filename"] == "windows.jpg")
            assert picture["mimetype"] == "image/jpeg"
            assert (tmp_path / ARTIFACTS / picture["artifact_id"]).read_bytes().startswith(b"\xff\xd8")


class TestTrouble:
    def test_without_optuna_dashboard_one_line_is_said(
        self, small: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = make(small, tmp_path)
        monkeypatch.setattr(optuna_notes, "find_spec", lambda _: None)
        annotate(made, small, Exports(), tmp_path)  # type: ignore[arg-type]
        out = capsys.readouterr().out
        assert "extra 'dashboard'" in out
        assert out.count("\n") == 1
        assert notes(made) == {}

    def test_an_export_that_fails_is_one_line(
        self, small: StudyResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Broken(Exports):
            def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
                raise OSError("disk full\nand more")

        made = make(small, tmp_path)
        annotate(made, small, Broken(), tmp_path)  # type: ignore[arg-type]
        assert capsys.readouterr().out == "note: optuna-dashboard shows less of this study: OSError: disk full\n"
        assert len(notes(made)) == 3
        assert all(one["artifacts"] == [] for one in shown(made)["trials"])

    def test_an_evaluator_that_cannot_export_has_notes_all_the_same(self, small: StudyResults, tmp_path: Path) -> None:
        made = make(small, tmp_path)
        annotate(made, small, object(), tmp_path)  # type: ignore[arg-type]
        assert len(notes(made)) == 3
        assert not (tmp_path / ARTIFACTS).exists()
