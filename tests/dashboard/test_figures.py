from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.dashboard.figures import (
    FIGURES,
    avoided,
    front,
    layer_sensitivity,
    predicted_vs_measured,
    progress,
    ratios_along_front,
    timeline,
)
from sparsevit.dashboard.figures.compare import compare
from sparsevit.dashboard.figures.labels import label_positions
from sparsevit.dashboard.figures.progress import hypervolumes
from sparsevit.search.results import Bounds, HeldOut, StudyResults


def traces(figure: go.Figure) -> dict[str, Any]:
    assert len({trace.name for trace in figure.data}) == len(figure.data)
    return {trace.name: trace for trace in figure.data}


def points(trace: Any) -> list[tuple[float, float]]:
    return list(zip(trace.x, trace.y, strict=True))


def texts(figure: go.Figure) -> str:
    return " ".join(note.text for note in figure.layout.annotations).replace("<br>", " ")


AS_PAPER: dict[str, Any] = {
    "target": "cuda:1 threads=1 float32 batch=4 672x672 eager backbone",
    "provenance": {
        "supernet.detector": "MaskRCNN",
        "supernet.channels": "96",
        "supernet.data": "instances_val2017.json, 5000 images of 80 classes",
        "environment.device": "NVIDIA RTX A6000",
        "environment.matmul": "highest",
    },
}


class TestFront:
    def test_every_trial_is_drawn_once_at_its_predicted_latency_and_search_accuracy(
        self, finished: StudyResults
    ) -> None:
        drawn = traces(front(finished))
        predicted = [
            point
            for name in ("outside the bounds (predicted)", "trials (predicted)", "front (predicted)")
            for point in points(drawn[name])
        ]
        assert sorted(predicted) == sorted((one.predicted_ms, one.accuracy["bbox_mAP"]) for one in finished.trials)
        assert all(x > finished.bounds.max_ms for x, _ in points(drawn["outside the bounds (predicted)"]))

    def test_confirmed_points_are_measured_latencies_and_confirmed_accuracies(self, finished: StudyResults) -> None:
        drawn = traces(front(finished))
        shown = points(drawn["confirmed (measured)"]) + points(drawn["best (measured)"])
        expected = [(one.measured.median_ms, one.confirmed["bbox_mAP"]) for one in finished.front]  # type: ignore[union-attr, index]
        assert sorted(shown) == sorted(expected)
        best = finished.best
        assert best is not None
        assert best.measured is not None
        bar = drawn["best (measured)"].error_x
        assert bar.array[0] == pytest.approx(best.measured.high_ms - best.measured.median_ms)
        assert bar.arrayminus[0] == pytest.approx(best.measured.median_ms - best.measured.low_ms)

    def test_the_front_line_is_a_staircase_from_fast_to_slow(self, finished: StudyResults) -> None:
        line = traces(front(finished))["front (predicted)"]
        assert list(line.x) == sorted(line.x)
        assert list(line.y) == sorted(line.y)
        assert line.line.shape == "hv"

    def test_predicted_and_measured_differ_in_marker(self, finished: StudyResults) -> None:
        drawn = traces(front(finished))
        symbols = {name: trace.marker.symbol for name, trace in drawn.items()}
        predicted = {symbol for name, symbol in symbols.items() if name.endswith("(predicted)")}
        measured = {symbol for name, symbol in symbols.items() if name.endswith("(measured)")}
        assert len(predicted) + len(measured) >= 5
        assert not predicted & measured

    def test_hover_shows_the_configuration_and_its_ratios_by_layer(self, finished: StudyResults) -> None:
        best = traces(front(finished))["best (measured)"]
        assert finished.best is not None
        row = best.customdata[0]
        assert row[1] == str(finished.best.sparsity)
        assert list(row[2:8]) == [float(value) for value in finished.best.sparsity.flat]
        for i, name in enumerate(finished.layer_names, 2):
            assert f"{name} %{{customdata[{i}]}}" in best.hovertemplate
        assert "mask mAP %{customdata[8]" in best.hovertemplate
        assert "measured %{x" in best.hovertemplate
        assert "500 images" in best.hovertemplate
        assert "150 images" in traces(front(finished))["trials (predicted)"].hovertemplate

    def test_references_are_labelled(self, finished: StudyResults) -> None:
        drawn = traces(front(finished))["references (measured)"]
        assert list(drawn.text) == ["uniform 60 %", "uniform 30 %", "dense"]
        dense = finished.references[0]
        assert dense.measured is not None
        assert drawn.x[-1] == dense.measured.median_ms

    def test_the_papers_results_are_drawn_beside_a_study_of_the_same(self, finished: StudyResults) -> None:
        known = traces(front(replace(finished, **AS_PAPER)))
        assert points(known["published (finetuned)"])[0] == (47.8, 0.426)
        assert known["published (finetuned)"].customdata[3][1] == "0.7/0/0.2,0.4,0.5/0"
        assert "published %{x" in known["published (finetuned)"].hovertemplate
        assert "not drawn" not in known["references (measured)"].hovertemplate
        masks = replace(finished, **AS_PAPER, metric="segm_mAP")
        assert points(traces(front(masks))["published (finetuned)"])[0] == (47.8, 0.388)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"metric": "bbox_mAP_50"}, "bbox mAP or mask mAP"),
            ({"supernet.detector": "CascadeRCNN"}, "Mask R-CNN"),
            ({"supernet.channels": "128"}, "Swin-T"),
            ({"supernet.data": "instances_val2017.json, 500 images of 80 classes"}, "COCO val2017"),
            ({"environment.device": "NVIDIA H200"}, "an NVIDIA RTX A6000"),
            ({"environment.matmul": "high"}, "float32 without TF32"),
            ({"target": "cuda:0 threads=1 bfloat16 batch=4 672x672 eager backbone"}, "float32 without TF32"),
            ({"target": "cuda:0 threads=1 float32 batch=1 672x672 eager backbone"}, "batch 4"),
            ({"target": "cuda:0 threads=1 float32 batch=4 640x672 eager backbone"}, "672x672"),
            ({"target": "cuda:0 threads=1 float32 batch=4 672x672 graph backbone"}, "eager execution"),
            ({"target": "cuda:0 threads=1 float32 batch=4 672x672 eager detector"}, "the backbone"),
            ({"target": "a machine"}, "another kind of target"),
        ],
    )
    def test_beside_anything_else_they_are_not_and_it_says_why(
        self, finished: StudyResults, change: dict[str, str], said: str
    ) -> None:
        known = {key: value for key, value in change.items() if "." in key}
        fields = {key: value for key, value in change.items() if key not in known}
        other = replace(finished, **AS_PAPER | {"provenance": AS_PAPER["provenance"] | known} | fields)
        more = [replace(one, accuracy={**(one.accuracy or {}), "bbox_mAP_50": 0.9}) for one in other.references]
        drawn = traces(front(replace(other, references=more)))
        assert "published (finetuned)" not in drawn
        assert f"not drawn: they are of {said}" in drawn["references (measured)"].hovertemplate

    def test_references_not_measured_stand_apart(self, finished: StudyResults) -> None:
        unmeasured = [replace(one, measured=None) for one in finished.references]
        drawn = traces(front(replace(finished, references=unmeasured)))
        assert "references (measured)" not in drawn
        assert set(drawn["references (predicted)"].x) == {one.predicted_ms for one in finished.references}

    @pytest.mark.parametrize(("low", "high"), [(0.0, 18.5), (14.0, 18.5), (14.0, 90.0)])
    def test_the_bounds_are_shaded(self, finished: StudyResults, low: float, high: float) -> None:
        figure = front(replace(finished, bounds=Bounds(low, high)))
        (shade,) = (shape for shape in figure.layout.shapes if shape.name == "bounds")
        left, right = figure.layout.xaxis.range
        assert shade.x0 == (low or left)
        assert shade.x1 == high
        assert left < shade.x0 + 1e-9
        assert high < right
        lines = {shape.x0 for shape in figure.layout.shapes if shape.name == "bound"}
        assert lines == ({low, high} if low else {high})

    @pytest.mark.parametrize(("max_ms", "side"), [(12.0, "left"), (100.0, "right")])
    def test_the_bound_is_named_beyond_it_where_there_is_room(
        self, finished: StudyResults, max_ms: float, side: str
    ) -> None:
        drawn = front(replace(finished, bounds=Bounds(0.0, max_ms)))
        (name,) = (one for one in drawn.layout.annotations if one.text.startswith("bound"))
        assert name.xanchor == side

    def test_a_best_trial_that_is_not_confirmed_counts_as_predicted(self, finished: StudyResults) -> None:
        plain = [replace(one, confirmed=None, measured=None) for one in finished.front]
        trials = [replace(one, confirmed=None, measured=None) for one in finished.trials]
        drawn = traces(front(replace(finished, trials=trials, front=plain, best=plain[-1])))
        assert "best (measured)" not in drawn
        assert "confirmed (measured)" not in drawn
        assert points(drawn["best (predicted)"]) == [(plain[-1].predicted_ms, plain[-1].accuracy["bbox_mAP"])]

    def test_a_confirmed_trial_off_the_front_stays_in_sight(self, finished: StudyResults) -> None:
        drawn = traces(front(replace(finished, front=finished.front[1:])))
        fallen = finished.front[0]
        assert fallen.measured is not None
        assert fallen.measured.median_ms in drawn["confirmed (measured)"].x
        assert fallen.predicted_ms in drawn["trials (predicted)"].x

    def test_without_a_feasible_trial(self, infeasible: StudyResults) -> None:
        drawn = traces(front(infeasible))
        assert set(drawn) == {"outside the bounds (predicted)", "references (measured)"}
        assert len(drawn["outside the bounds (predicted)"].x) == 60

    def test_ten_thousand_trials_stay_small(self, finished: StudyResults) -> None:
        many = [replace(one, number=i) for i, one in enumerate(finished.trials * 167)]  # type: ignore[operator]
        assert len(front(replace(finished, trials=many)).to_json()) < 2e6


class TestRatios:
    def test_cells_carry_the_ratios_fastest_first(self, finished: StudyResults) -> None:
        (heat,) = ratios_along_front(finished).data
        assert list(heat.y) == list(finished.layer_names)
        ordered = sorted(finished.front, key=lambda one: one.predicted_ms)
        for column, trial in enumerate(ordered):
            assert [row[column] for row in heat.z] == [float(value) for value in trial.sparsity.flat]
            assert [float(row[column]) for row in heat.text] == [float(value) for value in trial.sparsity.flat]
        assert heat.texttemplate == "%{text}"

    def test_ticks_are_the_predicted_latencies(self, finished: StudyResults) -> None:
        axis = ratios_along_front(finished).layout.xaxis
        assert list(axis.ticktext) == [f"{ms:.2f}" for ms in sorted(one.predicted_ms for one in finished.front)]

    def test_a_long_front_has_few_ticks_and_no_texts(self, finished: StudyResults) -> None:
        figure = ratios_along_front(replace(finished, front=finished.trials))
        assert len(figure.layout.xaxis.tickvals) <= 12
        assert figure.data[0].texttemplate is None


class TestPredictedVsMeasured:
    def test_errors_stand_in_the_legend(self, finished: StudyResults) -> None:
        sparsity = finished.held_out[0].sparsity
        held_out = [HeldOut(sparsity, 11.0, 10.0), HeldOut(sparsity, 19.0, 20.0)]
        drawn = traces(predicted_vs_measured(replace(finished, held_out=held_out)))
        assert points(drawn["held out (2): error 7.5% mean, 10.0% max"]) == [(11.0, 10.0), (19.0, 20.0)]

    def test_confirmed_trials_and_references_are_drawn(self, finished: StudyResults) -> None:
        drawn = {name.split(" (")[0]: trace for name, trace in traces(predicted_vs_measured(finished)).items()}
        assert set(drawn) == {"identity", "held out", "confirmed", "references"}
        assert points(drawn["confirmed"]) == [
            (one.predicted_ms, one.measured.median_ms) for one in finished.trials if one.measured
        ]

    def test_the_identity_spans_everything(self, finished: StudyResults) -> None:
        drawn = predicted_vs_measured(finished)
        line = traces(drawn)["identity"]
        assert line.x == line.y
        every = [value for trace in drawn.data for value in (*trace.x, *trace.y)]
        assert (min(every), max(every)) == tuple(line.x)


class TestProgress:
    def test_best_so_far_never_falls_and_ends_at_the_best_feasible_accuracy(self, finished: StudyResults) -> None:
        best = traces(progress(finished))["best so far"]
        assert list(best.y) == sorted(best.y)
        assert best.y[-1] == max(one.accuracy["bbox_mAP"] for one in finished.trials if one.feasible)

    def test_an_infeasible_trial_is_never_the_best(self, finished: StudyResults) -> None:
        star = replace(finished.trials[0], number=99, feasible=False, accuracy={"bbox_mAP": 0.99})
        drawn = traces(progress(replace(finished, trials=[*finished.trials, star])))
        assert max(drawn["best so far"].y) < 0.99
        assert (99, 0.99) in points(drawn["outside the bounds"])
        assert drawn["best so far"].x[-1] == 99

    def test_order_is_that_of_trial_numbers(self, finished: StudyResults) -> None:
        shuffled = replace(finished, trials=sorted(finished.trials, key=lambda one: one.predicted_ms))
        assert progress(shuffled).to_dict() == progress(finished).to_dict()

    def test_without_a_feasible_trial_it_says_so(self, infeasible: StudyResults) -> None:
        figure = progress(infeasible)
        assert figure.layout.title.text == "No trial within the bounds yet."
        assert list(traces(figure)) == ["outside the bounds"]


Points = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 10)), max_size=12)


@given(Points)
def test_hypervolume_is_the_area_under_the_staircase(latency_accuracy: list[tuple[int, int]]) -> None:
    width = 10
    volumes = hypervolumes(latency_accuracy, float(width))
    for i, volume in enumerate(volumes, 1):
        seen = latency_accuracy[:i]
        # Column by column: between x and x + 1 ms the best accuracy of a point at most x ms slow is dominated.
        area = sum(max((y for ms, y in seen if ms <= x), default=0) for x in range(width))
        assert volume == pytest.approx(area / width)


class TestLayerSensitivity:
    def test_slopes_of_a_plane_are_found_exactly(self, finished: StudyResults) -> None:
        slopes = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
        trials = [
            replace(one, accuracy={"bbox_mAP": 0.8 - sum(a * float(r) for a, r in zip(slopes, one.sparsity.flat))})  # noqa: B905
            for one in finished.trials
        ]
        figure = layer_sensitivity(replace(finished, trials=trials))
        lost, saved = figure.data
        assert list(lost.y) == list(finished.layer_names)
        # In points (hundredths) per tenth of a layer's windows.
        assert list(lost.x) == pytest.approx([10 * slope for slope in slopes])
        assert list(saved.x) == pytest.approx([0.4, 0.3, 0.26, 0.26, 0.26, 0.12])
        assert "R² 1.00" in figure.layout.title.text

    @pytest.mark.parametrize("count", [0, 1, 13])
    def test_too_few_trials_give_a_sentence(self, finished: StudyResults, count: int) -> None:
        figure = layer_sensitivity(replace(finished, trials=finished.trials[:count]))
        assert "Too few different trials" in texts(figure)

    def test_trials_that_are_all_alike_give_a_sentence(self, finished: StudyResults) -> None:
        assert "Too few different" in texts(layer_sensitivity(replace(finished, trials=[finished.trials[0]] * 60)))


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_study_gives_a_sentence_and_no_chart(empty: StudyResults, name: str) -> None:
    figure = FIGURES[name].draw(empty)
    assert not figure.data
    assert len(texts(figure).split()) >= 6
    assert not figure.layout.xaxis.visible


@pytest.mark.parametrize("name", FIGURES)
def test_metrics_that_are_missing_or_no_number_are_left_out(finished: StudyResults, name: str) -> None:
    bad = [{}, {"bbox_mAP": float("nan")}, {"segm_mAP": 0.5}]
    trials = [
        replace(one, number=100 + i, accuracy=bad[i % 3], confirmed=None, measured=None)
        for i, one in enumerate(finished.trials)
    ]
    drawn = FIGURES[name].draw(replace(finished, trials=[*finished.trials, *trials]))
    assert drawn.to_dict() == FIGURES[name].draw(finished).to_dict()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_do_not_carry_markup_from_users(finished: StudyResults, name: str) -> None:
    evil = "<a href='javascript:alert(1)'>x</a></script><script>alert(1)</script>"
    results = replace(
        finished, name=evil, metric=evil, metrics=(evil,), layer_names=[evil] * 6, target=evil,
        trials=[replace(one, accuracy={evil: 0.5 + one.number / 100}, worker=evil) for one in finished.trials],
        front=[replace(one, accuracy={evil: 0.5}, confirmed={evil: 0.5}) for one in finished.front],
        references=[replace(one, label=evil, accuracy={evil: 0.5}) for one in finished.references],
    )  # fmt: skip
    figure = FIGURES[name].draw(results)
    assert "<script" not in json.dumps(figure.to_dict(), default=list)
    assert "<a " not in json.dumps(figure.to_dict(), default=list)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_explained_in_one_sentence_and_has_clear_paper(finished: StudyResults, name: str) -> None:
    kind = FIGURES[name]
    assert kind.explanation.endswith(".")
    assert ". " not in kind.explanation
    assert kind.draw(finished).layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_where_nothing_was_spared_it_says_so(finished: StudyResults) -> None:
    assert "nothing to spare" in texts(avoided(finished))
    spared = [replace(one, infeasible=2, duplicates=1) for one in finished.trials]
    assert set(traces(avoided(replace(finished, trials=spared)))) == {
        f"outside the bounds ({2 * len(spared)})",
        f"known already ({len(spared)})",
    }


def test_workers_are_named_as_short_as_tells_them_apart(finished: StudyResults) -> None:
    names = ["host:7:4026531836:11", "host:8:4026531836:12", "host:8:4026531836:99"]
    trials = [replace(one, worker=names[one.number % 3]) for one in finished.trials]
    assert set(traces(timeline(replace(finished, trials=trials)))) == {"host:7", *names[1:]}


def test_targets_over_charts_fit_a_phone(finished: StudyResults) -> None:
    long = replace(finished, target="cuda:0 threads=1 bfloat16 batch=4 672x672 compiled+graph backbone")
    titles = [one.text for one in compare({"a": long, "b": finished}).layout.annotations]
    assert max(len(line) for title in titles for line in title.split("<br>")) <= 44
    assert [title.replace("<br>", " ") for title in titles] == sorted([finished.target, long.target])


class TestLabelPositions:
    def test_a_label_avoids_points_and_edges(self) -> None:
        crowd = [(5.2 + i / 10, 4.8) for i in range(5)]
        assert label_positions(["dense"], [(5, 5)], crowd, (0, 10), (0, 10)) == ["bottom left"]
        assert label_positions(["dense"], [(9.9, 9.9)], [], (0, 10), (0, 10)) == ["bottom left"]
        assert label_positions(["dense"], [(0.1, 0.1)], [], (0, 10), (0, 10)) == ["top right"]

    def test_labels_do_not_lie_on_each_other(self) -> None:
        one, two = label_positions(["uniform 30 %", "uniform 40 %"], [(5, 5), (5.5, 5)], [], (0, 10), (0, 10))
        assert one != two

    def test_of_sides_that_suit_a_desk_the_one_that_suits_a_phone(self) -> None:
        crowd = [(3 + i / 10, 4.8) for i in range(5)]
        assert label_positions(["uniform 80 %"], [(1, 5)], crowd, (0, 10), (0, 10)) == ["top right"]

    def test_a_single_value_needs_no_range(self) -> None:
        assert label_positions(["dense"], [(5, 5)], [], (5, 5), (5, 5))
