"""The server's pages as a browser gets them: finished, empty, running and hostile studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsevit.dashboard.server.pages import load_pages
from sparsevit.errors import UserError
from sparsevit.search.spec import StudySpec

LOCAL = {"Host": "localhost"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>../../etc/passwd'\""
PAGES = ("overview", "front", "layers", "latency", "search", "windows", "compare")


def update(client: Any, output: str, inputs: dict[str, Any], state: dict[str, Any] | None = None) -> Any:
    """What a callback answers, as JSON; None for "nothing new"."""

    def listed(values: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"id": k.split(".")[0], "property": k.split(".")[1], "value": v} for k, v in values.items()]

    parts = output.strip(".").split("...")
    outputs: Any = [dict(zip(("id", "property"), part.split("."), strict=True)) for part in parts]
    body = {
        "output": output,
        "outputs": outputs if output.startswith("..") else outputs[0],
        "inputs": listed(inputs),
        "changedPropIds": [next(iter(inputs))],
        "state": listed(state or {}),
    }
    answer = client.post("/_dash-update-component", json=body, headers=LOCAL)
    assert answer.status_code in (200, 204), answer.text
    return json.loads(answer.data)["response"] if answer.status_code == 200 else None


def page(client: Any, path: str, search: str = "") -> Any:
    return update(client, "page.children", {"url.pathname": path, "url.search": search})["page"]["children"]


def parts(tree: Any, kind: str) -> list[dict[str, Any]]:
    """The properties of all components of a kind in a page."""
    if isinstance(tree, list):
        return [one for child in tree for one in parts(child, kind)]
    if not isinstance(tree, dict) or "props" not in tree:
        return []
    own = [tree["props"]] if tree["type"] == kind else []
    return own + parts(tree["props"].get("children"), kind)


def texts(tree: Any) -> str:
    if isinstance(tree, list):
        return " ".join(texts(child) for child in tree)
    if isinstance(tree, dict):
        return texts(tree.get("props", {}).get("children"))
    return "" if tree is None else str(tree)


@pytest.fixture(scope="module")
def reader(finished: Any, serve: Callable[..., Any]) -> Any:
    """A client of a server over the finished studies."""
    return serve(finished.url)


def test_the_frame_comes_with_our_policy(reader: Any) -> None:
    answer = reader.get("/", headers=LOCAL)
    assert answer.status_code == 200
    assert "script-src 'self' 'sha256-" in answer.headers["Content-Security-Policy"]
    assert "unsafe-eval" not in answer.headers["Content-Security-Policy"]
    assert "viewport" in answer.text


@pytest.mark.parametrize("path", ["/_dash-component-suites/plotly/package_data/plotly.min.js", "/static/bundle.js"])
def test_a_large_script_travels_once(reader: Any, path: str) -> None:
    asked = {**LOCAL, "Accept-Encoding": "gzip"}
    first = reader.get(path, headers=asked)
    assert first.headers["Content-Encoding"] == "gzip"
    again = reader.get(path, headers=asked | {"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, len(again.data)) == (304, 0)


@pytest.mark.parametrize("slug", PAGES)
def test_every_page_of_a_finished_study(reader: Any, slug: str) -> None:
    shown = page(reader, f"/{slug}")
    assert "digits" in texts(shown)
    expected = [name for section in load_pages()[slug].sections for name in section.figures]
    graphs = [one["id"]["name"] for one in parts(shown, "Graph") if isinstance(one["id"], dict)]
    assert graphs == expected
    links = [one["href"] for one in parts(shown, "Link")]
    assert links[: len(PAGES)] == [f"/{other}?study=digits" for other in PAGES]
    assert links[len(PAGES) :] == [f"/{slug}?study={name}" for name in ("digits", "second")]
    assert len(json.dumps(shown)) < 2e6


@pytest.mark.parametrize("state", ["empty", "none feasible", "running"])
def test_every_page_of_a_study_without_results(made: Any, serve: Callable[..., Any], state: str) -> None:
    study = made.study(max_ms=5.0 if state == "none feasible" else 60.0)
    if state == "none feasible":
        made.add(study, 6, max_ms=5.0)
    if state == "running":
        made.run(study)
    client = serve(made.url)
    for slug in PAGES:
        assert "digits" in texts(page(client, f"/{slug}"))


def test_overview_counts_what_happens_now(made: Any, serve: Callable[..., Any]) -> None:
    study = made.study(asked=40)
    made.add(study, 4)
    made.run(study)
    client = serve(made.url)
    assert "4 of 40 trials 10% done" in texts(page(client, "/overview"))
    assert "1 worker on 1 trial" in texts(page(client, "/overview"))
    made.add(study, 4, seed=1)
    facts = update(client, "facts-now.children", {"tick.n_intervals": 1}, {"url.search": ""})
    assert "8 of 40 trials 20% done" in texts(facts["facts-now"]["children"])


def test_figures_come_again_only_when_something_changed(made: Any, serve: Callable[..., Any]) -> None:
    study = made.study()
    made.add(study, 5)
    client = serve(made.url)
    name, store = ('{"kind":"%s","name":["MATCH"]}' % kind for kind in ("figure", "stamp"))  # noqa: UP031
    stamp = next(one["data"] for one in parts(page(client, "/overview"), "Store"))

    def follow(seen: str) -> Any:
        figure, moment = ({"kind": kind, "name": "progress"} for kind in ("figure", "stamp"))
        body = {
            "output": f"..{name}.figure...{name}.style...{store}.data..",
            "outputs": [
                {"id": figure, "property": "figure"},
                {"id": figure, "property": "style"},
                {"id": moment, "property": "data"},
            ],
            "inputs": [{"id": "tick", "property": "n_intervals", "value": 1}],
            "changedPropIds": ["tick.n_intervals"],
            "state": [
                {"id": moment, "property": "data", "value": seen},
                {"id": moment, "property": "id", "value": moment},
                {"id": "url", "property": "search", "value": ""},
            ],
        }
        return client.post("/_dash-update-component", json=body, headers=LOCAL)

    assert follow(stamp).status_code == 204
    made.add(study, 1, seed=3)
    answer = follow(stamp)
    assert answer.status_code == 200
    new = {key: value for part in answer.json["response"].values() for key, value in part.items()}
    assert new["data"] != stamp
    assert new["figure"]["data"]


def test_the_slider_picks_the_best_within_the_budget(reader: Any) -> None:
    client = reader
    slider = parts(page(client, "/front"), "Slider")[0]

    def picked(budget: float) -> str:
        answer = update(client, "picked.children", {"budget.value": budget}, {"url.search": "?study=digits"})
        return texts(answer["picked"]["children"])

    assert "trial" in picked(slider["max"])
    assert picked(slider["max"]) != picked((slider["min"] + slider["max"]) / 2)
    assert "no trial of study 'digits' takes at most" in picked(1.0)
    assert "Download" not in picked(slider["max"])  # the database alone knows no supernet


def test_comparison_follows_and_names_no_study_it_has_not(reader: Any) -> None:
    client = reader
    wanted = ["digits", "second", "gone"]
    output = "..comparison.figure...comparison.style...comparison-stamp.data.."
    answer = update(client, output, {"compared.value": wanted, "tick.n_intervals": 1}, {"comparison-stamp.data": None})
    names = {trace["name"] for trace in answer["comparison"]["figure"]["data"]}
    assert {"digits (predicted)", "digits (measured)", "second (predicted)"} <= names
    again = {"comparison-stamp.data": answer["comparison-stamp"]["data"]}
    assert update(client, output, {"compared.value": wanted, "tick.n_intervals": 2}, again) is None


def test_windows_say_why_there_are_none(reader: Any) -> None:
    output = "..windows-shown.children...windows-done.data.."
    inputs = {"windows-of.value": "0/0/0,0,0/0", "windows-image.value": 0, "tick.n_intervals": 1}
    states = {"windows-done.data": None, "url.search": ""}
    answer = update(reader, output, inputs, states)
    assert "known to the study file alone" in texts(answer["windows-shown"]["children"])


def test_a_supernet_that_cannot_be_opened_is_said_on_the_page(
    finished: Any, serve: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "digits.toml"
    file.write_text('name = "digits"\n[supernet]\nevaluator = "no_such_module_here:make"\n[latency]\nmax = 60\n')
    given = {f"{finished.url} digits": (StudySpec.load(file), str(file), None)}
    client = serve(finished.url, given=given)
    answer = client.get("/finetune?study=digits&trial=0", headers=LOCAL)
    assert answer.status_code == 404
    assert "the supernet cannot be opened" in answer.text
    output = "..windows-shown.children...windows-done.data.."
    inputs = {"windows-of.value": "0/0/0,0,0/0", "windows-image.value": 0, "tick.n_intervals": 1}
    shown = update(client, output, inputs, {"windows-done.data": None, "url.search": "?study=digits"})
    assert "cannot be opened" in texts(shown["windows-shown"]["children"])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, make: Any, serve: Callable[..., Any]) -> Any:
    made = make(tmp_path_factory.mktemp("hostile") / "study.db")
    study = made.study(EVIL)
    made.add(study, 25, confirm=True)
    study.set_user_attr("note", EVIL)
    made.storage.set_study_system_attr(study._study_id, "dashboard:note_str:0", EVIL)
    return serve(made.url)


class TestHostile:
    """Names and notes that were chosen to break out of a page."""

    @pytest.mark.parametrize("slug", PAGES)
    def test_a_name_stays_text(self, hostile: Any, slug: str) -> None:
        shown = page(hostile, f"/{slug}")
        assert not parts(shown, "Markdown")
        assert not parts(shown, "Script")
        assert not parts(shown, "Iframe")
        assert "dangerously" not in json.dumps(shown)
        for graph in parts(shown, "Graph"):
            assert "<script" not in json.dumps(graph.get("figure", {}))

    def test_no_page_is_made_of_a_foreign_address(self, hostile: Any) -> None:
        for path in (f"/{EVIL}", "/../../etc/passwd", "/%2e%2e/x"):
            assert "There is no page" in texts(page(hostile, path))
        assert "no study" in texts(page(hostile, "/front", f"?study={EVIL}x"))

    @pytest.mark.parametrize(
        "path",
        [
            "/assets/../app.py", "/assets/..%2fapp.py", "/assets/%2e%2e/app.py", "/static/../index.html",
            "/static/..%2f..%2f..%2fetc/passwd", "/artifacts/1/..%2f..%2fstudy.db", "/picture?study=../../x",
            "/finetune?study=../../x&trial=0", "/finetune?study=x&trial=../../x", "/study.db",
            "/_dash-component-suites/dash/../../x.py", "/_dash-component-suites/sparsevit/app.py",
        ],
    )  # fmt: skip
    def test_no_file_outside_is_served(self, hostile: Any, path: str) -> None:
        answer = hostile.get(path, headers=LOCAL)
        assert b"from __future__" not in answer.data
        assert b"SQLite format" not in answer.data
        assert b"root:" not in answer.data
        assert answer.status_code in (200, 400, 403, 404)
        if answer.status_code == 200:  # an address that is none of a file is that of a page
            assert b"react-entry-point" in answer.data

    def test_an_artifact_that_is_a_page_runs_nothing(self, hostile: Any) -> None:
        policy = hostile.get("/artifacts/1/abc", headers=LOCAL).headers["Content-Security-Policy"]
        assert "sandbox" in policy
        assert "allow-scripts" not in policy


def test_optuna_dashboard_reads_the_same_database_and_writes_nothing(reader: Any) -> None:
    client = reader
    assert client.get("/dashboard", headers=LOCAL).status_code == 200
    assert client.get("/api/studies", headers=LOCAL).json["study_summaries"][0]["study_name"] == "digits"
    for method, path in (
        ("POST", "/api/studies"), ("DELETE", "/api/studies/1"), ("PUT", "/api/studies/1/note"),
        ("PUT", "/api/studies/1/1/note"), ("POST", "/api/studies/1/rename"), ("POST", "/api/trials/1/tell"),
        ("POST", "/api/trials/1/user-attrs"), ("POST", "/api/artifacts/1/1"), ("DELETE", "/api/artifacts/1/1/x"),
    ):  # fmt: skip
        assert client.open(path, method=method, json={"body": "x", "version": 1}, headers=LOCAL).status_code == 405


def test_with_write_notes_are_kept(made: Any, serve: Callable[..., Any]) -> None:
    made.study()
    client = serve(made.url, write=True)
    body = {"body": "mine", "version": 1}
    assert client.put("/api/studies/1/note", json=body, headers=LOCAL).status_code == 204
    foreign = {**LOCAL, "Origin": "http://evil.example"}
    assert client.put("/api/studies/1/note", json=body, headers=foreign).status_code == 403
    assert client.get("/api/studies/1?after=0", headers=LOCAL).json["note"]["body"] == "mine"


def test_no_page_tells_where_the_database_is(finished: Any, reader: Any) -> None:
    secret, client = str(Path(finished.url.removeprefix("sqlite:///")).parent), reader
    for slug in PAGES:
        assert secret not in json.dumps(page(client, f"/{slug}"))
    for path in ("/", "/_dash-layout", "/_dash-dependencies", "/dashboard", "/api/meta", "/api/studies", "/finetune"):
        assert secret not in client.get(path, headers=LOCAL).text


class TestPages:
    def test_a_file_more_is_a_page_more(self, finished: Any, serve: Callable[..., Any], tmp_path: Path) -> None:
        (tmp_path / "2_mine.toml").write_text(
            'title = "Mine"\n[[section]]\nheading = "All"\nfigures = ["front"]\npanels = ["facts"]\n'
        )
        client = serve(finished.url, pages=tmp_path)
        shown = page(client, "/")
        assert [one["children"] for one in parts(shown, "Link")] == ["Mine", "digits", "second"]
        assert [one["id"]["name"] for one in parts(shown, "Graph")] == ["front"]

    def test_order_is_that_of_the_numbers(self, tmp_path: Path) -> None:
        for name in ("10_last", "2_first", "x"):
            (tmp_path / f"{name}.toml").write_text(f'title = "{name}"\n[[section]]\nheading = "h"\n')
        assert list(load_pages(tmp_path)) == ["first", "last", "x"]

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("1_x.toml", 'title = "x"\n[[section]]\nheading = "h"\npanels = ["pie"]\n', "unknown panel 'pie'"),
            ("1_x.toml", 'title = "x"\n[[section]]\nheading = "h"\nfigures = ["pie"]\n', "unknown figure 'pie'"),
            ("1_x.toml", 'title = "x"\ncolour = 1\n[[section]]\nheading = "h"\n', "unknown key 'colour'"),
            ("1 X.toml", 'title = "x"\n[[section]]\nheading = "h"\n', "name a page like"),
            ("x.txt", "", "holds no page"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, name: str, text: str, said: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=said):
            load_pages(tmp_path)
