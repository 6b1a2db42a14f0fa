from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.page import Page
from sparsevit.dashboard.report import summary, write_report, write_text
from sparsevit.dashboard.server.pages import load_pages
from sparsevit.errors import UserError
from sparsevit.search.results import Bounds, StudyResults

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"


class Html(HTMLParser):
    """What a browser would see: elements with their attributes, text, and each script's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data

    def figures(self) -> dict[str, Any]:
        scripts = [attributes for tag, attributes in self.elements if tag == "script"]
        return {
            str(attributes["id"]): json.loads(text)
            for attributes, text in zip(scripts, self.scripts, strict=True)
            if attributes.get("type") == "application/json"
        }


def report(results: StudyResults, folder: Path, **options: Any) -> Html:
    return Html(write_report(results, folder / "report.html", **options).read_text(encoding="utf-8"))


def test_one_file_of_at_most_seven_megabytes_with_plotly_once(finished: StudyResults, tmp_path: Path) -> None:
    path = write_report(finished, tmp_path / "deep" / "report.html")
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size <= 7e6
    assert path.read_text(encoding="utf-8").count(get_plotlyjs()) == 1


def test_ten_thousand_trials_fit_too(finished: StudyResults, tmp_path: Path) -> None:
    many = [
        replace(one, number=i, worker=f"host{i % 8}:{i}", confirmed=None, measured=None)
        for i, one in enumerate([*finished.trials] * 167)
    ]
    path = write_report(replace(finished, trials=many), tmp_path / "report.html")
    assert path.stat().st_size <= 7e6


def test_it_shows_every_figure_of_the_dashboards_pages(finished: StudyResults, tmp_path: Path) -> None:
    shown = {name.removeprefix("figure-") for name in report(finished, tmp_path).figures()}
    named = {name for page in load_pages().values() for section in page.sections for name in section.figures}
    assert named
    assert named | set(FIGURES) == shown


def test_nothing_is_loaded_from_anywhere(finished: StudyResults, tmp_path: Path) -> None:
    page = report(finished, tmp_path)
    for _, attributes in page.elements:
        assert not {"src", "srcset", "action", "data", "poster"} & set(attributes)
        assert attributes.get("href", "data:,") == "data:,"
    styles = re.findall(r"<style>.*?</style>", (tmp_path / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert not any("url(" in style or "@import" in style for style in styles)


def test_the_policy_lets_these_two_scripts_run_and_no_other(finished: StudyResults, tmp_path: Path) -> None:
    page = report(finished, tmp_path)
    (policy,) = (
        str(attributes["content"])
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = re.search(r"script-src ([^;]*)", policy)
    assert "default-src 'none'" in policy
    assert allowed is not None
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[-2:]}
    assert set(allowed[1].split()) == {f"'sha256-{one}'" for one in hashes}


def test_it_holds_every_figure_of_the_page_with_its_explanation(finished: StudyResults, tmp_path: Path) -> None:
    page = report(finished, tmp_path)
    places = {attributes["data-figure"] for _, attributes in page.elements if "data-figure" in attributes}
    assert {f"figure-{name}" for name in places} == set(page.figures())
    assert {"front", "ratios_along_front", "predicted_vs_measured", "progress"} <= places
    assert page.figures()["figure-front"]["data"][0]["x"]
    assert "On the dashed line the latency model is exact" in page.text


def test_it_holds_the_table_provenance_and_commands(finished: StudyResults, tmp_path: Path) -> None:
    text = report(finished, tmp_path, study="'my studies/digits.toml'").text
    for trial in finished.front:
        assert trial.measured is not None
        assert str(trial.sparsity) in text
        assert f"{trial.measured.median_ms:.2f} [{trial.measured.low_ms:.2f}, {trial.measured.high_ms:.2f}]" in text
    assert finished.target in text
    assert "2.11.0" in text
    assert "sparsevit search 'my studies/digits.toml' --trials 60" in text
    assert "not confirmed" not in text


@pytest.mark.parametrize("study", ["empty", "infeasible"])
def test_studies_without_a_result_say_so(study: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = report(request.getfixturevalue(study), tmp_path).text
    assert "No trial within the bounds yet." in text
    assert "configuration within the bounds" in text


def test_names_notes_and_labels_stay_text(finished: StudyResults, tmp_path: Path) -> None:
    results = replace(
        finished, name=EVIL, target=EVIL, provenance={EVIL: EVIL}, layer_names=[EVIL] * 6,
        references=[replace(one, label=EVIL) for one in finished.references],
    )  # fmt: skip
    harmless, page = report(finished, tmp_path), report(results, tmp_path, study=EVIL)
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == ["script"] * len(harmless.scripts)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert EVIL in page.text
    assert page.figures().keys() == harmless.figures().keys()


class TestSummary:
    def test_speed_up_is_measured_over_measured(self, finished: StudyResults) -> None:
        dense, best = finished.references[0].measured, finished.best
        assert dense is not None
        assert best is not None
        assert best.measured is not None
        assert best.confirmed is not None
        speed, accuracy, bound, effort = summary(finished)
        assert speed.value == f"{dense.median_ms / best.measured.median_ms:.2f}×"
        assert accuracy.value == f"−{100 * (0.810 - best.confirmed['bbox_mAP']):.1f}"
        assert bound.value == "18.50 ms"
        assert (effort.value, effort.name) == ("60", "of 60 trials")
        assert "412 infeasible and 9 repeated" in effort.remark

    def test_no_speed_up_is_claimed_from_predictions(self, finished: StudyResults) -> None:
        assert finished.best is not None
        speed, accuracy, *_ = summary(replace(finished, best=replace(finished.best, measured=None, confirmed=None)))
        assert speed.value == "–"
        assert accuracy.value == f"{finished.best.accuracy['bbox_mAP']:.3f}"
        assert "not confirmed" in accuracy.remark

    def test_a_lower_bound_is_named(self, finished: StudyResults) -> None:
        assert "at least 12.00 ms" in summary(replace(finished, bounds=Bounds(12.0, 18.5)))[2].remark


class TestWriting:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, finished: StudyResults, tmp_path: Path) -> None:
        path = tmp_path / "report.html"
        path.write_text("old")
        broken = replace(finished, front=[None])  # type: ignore[list-item]
        with pytest.raises(AttributeError):
            write_report(broken, path)
        assert path.read_text() == "old"
        with pytest.raises(UnicodeEncodeError):
            write_text(path, "\ud800")
        assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
        assert path.read_text() == "old"

    def test_a_folder_that_cannot_be_is_the_users_error(self, finished: StudyResults, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write"):
            write_report(finished, tmp_path / "file" / "report.html")
        (tmp_path / "folder.html").mkdir()
        with pytest.raises(UserError, match="cannot write"):
            write_report(finished, tmp_path / "folder.html")
        assert not list(tmp_path.glob(".*"))


class TestPage:
    def load(self, folder: Path, text: str) -> Page:
        path = folder / "page.toml"
        path.write_text(text, encoding="utf-8")
        return Page.load(path)

    def test_order_and_headings_follow_the_file(self, finished: StudyResults, tmp_path: Path) -> None:
        page = self.load(
            tmp_path,
            'title = "Mine & yours"\n[[section]]\nheading = "B"\nfigures = ["progress", "front"]\n'
            '[[section]]\nheading = "A"\nfigures = ["ratios_along_front"]\n',
        )
        html = report(finished, tmp_path, page=page)
        places = [attributes["data-figure"] for _, attributes in html.elements if "data-figure" in attributes]
        assert places == ["progress", "front", "ratios_along_front"]
        assert html.text.index("B\n") < html.text.index("A\n")
        assert "Mine & yours" in html.text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                'title = "x"\n[[section]]\nheading = "h"\nfigures = ["fronts"]',
                "unknown figure 'fronts'; allowed are front,",
            ),
            (
                'title = "x"\n[[section]]\nheading = "h"\nfigures = ["front"]\ncolour = 1',
                "unknown key 'section.0.colour'",
            ),
            ('title = "x"', "section: Field required"),
            ('title = "x"\nsection = []', "section"),
            ("title = ", "not valid TOML"),
        ],
    )
    def test_mistakes_are_named_in_one_line(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)) as error:
            self.load(tmp_path, text)
        assert "page.toml" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nowhere\.toml"):
            Page.load(tmp_path / "nowhere.toml")
