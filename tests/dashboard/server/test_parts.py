"""The server's parts by themselves: thinned figures, the state of a search, pictures, studies by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.server.facts import facts, per_minute, share_done
from sparsevit.dashboard.server.live import Database, Studies
from sparsevit.dashboard.server.pictures import image_png, overlay, png
from sparsevit.dashboard.server.thin import CELLS, MOST, thin
from sparsevit.errors import UserError
from sparsevit.search.results import Running
from sparsevit.search.scene import LayerWindows
from sparsevit.search.spec import StudySpec
from sparsevit.search.worker import this_worker
from sparsevit.sparsity import SparsitySpace


class TestThin:
    def test_a_small_figure_stays_as_it_is(self) -> None:
        drawn = go.Figure(go.Scatter(x=list(range(MOST)), y=list(range(MOST)), mode="markers"))
        assert thin(drawn) == drawn

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_points_stay_with_what_belongs_to_them_and_the_outermost_stay(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, MOST + 500))
        data = [[float(one)] for one in x]
        drawn = go.Figure(go.Scatter(x=x.tolist(), y=y.tolist(), customdata=data, mode="markers"))
        (trace,) = thin(drawn).data
        assert len(trace.x) == len(trace.y) == len(trace.customdata) <= CELLS[0] * CELLS[1] + 4
        assert [one[0] for one in trace.customdata] == list(trace.x)
        assert set(zip(trace.x, trace.y, strict=True)) <= set(zip(x.tolist(), y.tolist(), strict=True))
        assert {min(trace.x), max(trace.x), min(trace.y), max(trace.y)} == {x.min(), x.max(), y.min(), y.max()}
        assert len(drawn.data[0].x) == MOST + 500

    def test_a_line_keeps_its_ends(self) -> None:
        count = 5 * MOST
        drawn = go.Figure(go.Scatter(x=list(range(count)), y=[0.5] * count, mode="lines"))
        (trace,) = thin(drawn).data
        assert len(trace.x) == MOST
        assert (trace.x[0], trace.x[-1]) == (0, count - 1)

    @pytest.mark.parametrize("name", list(FIGURES))
    def test_ten_thousand_trials_stay_small(self, many: Any, name: str) -> None:
        assert len(thin(FIGURES[name].draw(many)).to_json()) < 1e6


@pytest.fixture(scope="module")
def many(finished: Any) -> Any:
    results = Database(finished.url).results("digits")
    rng = np.random.default_rng(0)
    trials = [
        replace(
            results.trials[i % 26], number=i, predicted_ms=float(rng.uniform(25, 75)),
            started=datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=i),
            accuracy={"bbox_mAP": float(rng.uniform(0.3, 0.9)), "segm_mAP": 0.5},
        )
        for i in range(10_000)
    ]  # fmt: skip
    return replace(results, trials=trials)


class TestFacts:
    def test_rate_is_that_of_the_latest_trials(self, many: Any) -> None:
        assert per_minute(replace(many, trials=many.trials[:100])) == pytest.approx(60)
        assert per_minute(replace(many, trials=many.trials[:1])) is None
        assert share_done(replace(many, trials=many.trials[:13], trials_asked=26)) == 0.5
        assert share_done(replace(many, trials=many.trials[:30], trials_asked=26)) == 1

    def test_time_left_is_told_only_while_someone_works(self, many: Any) -> None:
        idle = replace(many, trials=many.trials[:10], trials_asked=20)
        assert "nobody works" in facts(idle)[1].remark
        at_work = replace(idle, running=[Running(10, None, this_worker())])
        assert "left" in facts(at_work)[1].remark
        assert facts(at_work)[2].value == "1"

    def test_a_worker_that_is_gone_does_not_count(self, many: Any) -> None:
        host = this_worker().rpartition(":")[0]
        left = replace(many, running=[Running(1, None, f"{host}:999999999")])
        assert facts(left)[2].value == "0"
        assert "1 trial was left behind" in facts(left)[2].remark


class TestStudies:
    def test_the_one_asked_for_comes_first_and_new_ones_appear(self, made: Any, tmp_path: Path) -> None:
        file = tmp_path / "zebra.toml"
        file.write_text('name = "zebra"\n[latency]\nmax = 60\n')
        database = Database(made.url)
        studies = Studies([database], {f"{made.url} zebra": (StudySpec.load(file), str(file), None)})
        with pytest.raises(UserError, match="no study yet"):
            studies.get(None)
        made.study("ant")
        made.study("zebra")
        assert list(studies.all()) == ["zebra", "ant"]
        assert studies.get(None).spec is not None
        assert studies.get("ant").spec is None
        with pytest.raises(UserError, match="no study 'bee'; there are: zebra, ant"):
            studies.get("bee")

    def test_two_databases_may_hold_the_same_name(self, make: Callable[..., Any], tmp_path: Path) -> None:
        both = [make(tmp_path / f"{name}.db") for name in "ab"]
        for one in both:
            one.study("same")
        assert list(Studies([Database(one.url) for one in both], {}).all()) == ["same", "same (2)"]
        for one in both:
            one.close()

    def test_a_database_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no database"):
            Database(f"sqlite:///{tmp_path / 'gone.db'}")
        assert not (tmp_path / "gone.db").exists()

    def test_the_stamp_changes_with_trials_and_with_figures_of_the_ledger(self, made: Any) -> None:
        study = made.study()
        database = Database(made.url)
        stamps = [database.stamp("digits")]
        assert database.stamp("digits") == stamps[0]
        made.run(study)
        stamps.append(database.stamp("digits"))
        made.add(study, 1)
        stamps.append(database.stamp("digits"))
        made.add(study, 1, seed=5, confirm=True)
        stamps.append(database.stamp("digits"))
        assert len(set(stamps)) == len(stamps)


class TestPictures:
    @pytest.mark.parametrize("channels", [3, 4])
    def test_a_png_reads_back(self, channels: int) -> None:
        images = pytest.importorskip("PIL.Image")
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
        assert np.array_equal(np.asarray(images.open(io.BytesIO(png(pixels)))), pixels)

    def test_a_large_image_is_thinned(self) -> None:
        images = pytest.importorskip("PIL.Image")
        read = images.open(io.BytesIO(image_png(np.zeros((800, 1333, 3), np.uint8))))
        assert max(read.size) <= 480
        assert read.size[0] / read.size[1] == pytest.approx(1333 / 800, rel=0.01)

    def test_what_is_computed_is_clear_and_what_is_not_is_dark(self) -> None:
        import base64

        images = pytest.importorskip("PIL.Image")
        source = overlay(LayerWindows(1, 2, np.array([[1.0, 0.5, 0.0]])))
        read = images.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        alphas = np.asarray(read)[0, :, 3]
        assert alphas[0] == 0
        assert 0 < alphas[1] < alphas[2] < 255


def test_importance_finds_what_matters() -> None:
    from sparsevit.dashboard.figures.importance import explained_shares

    rng = np.random.default_rng(0)
    inputs = rng.random((400, 3))
    shares = explained_shares(inputs, 3 * inputs[:, 0] + inputs[:, 1] ** 2)
    assert shares[0] > shares[1] > 0.05
    assert shares[2] == pytest.approx(0, abs=0.01)
    assert shares.sum() == pytest.approx(1, abs=0.01)
    assert explained_shares(inputs, np.ones(400)).tolist() == [0, 0, 0]
    many = rng.random((300, 9))  # more layers than all orders can be tried of
    assert explained_shares(many, many[:, 4]).argmax() == 4


def test_the_bar_picture_rises_with_the_ratio() -> None:
    from sparsevit.dashboard.figures.style import bars

    assert bars(SparsitySpace().parse("0/0.8/0.1,0.4,0.8/0")) == "▁ █ ▂▄█ ▁"
