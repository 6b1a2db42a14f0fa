"""Stock optuna-dashboard over a database, asked as its own page asks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import create_trial

from sparsevit.dashboard.optuna_app import optuna_app
from sparsevit.errors import MissingExtraError
from sparsevit.search.storage import open_storage


def get(app: Any, path: str, query: str = "after=0") -> tuple[str, dict[str, str], bytes]:
    """Status, headers and body of what the application answers."""
    environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    started: list[Any] = []
    parts = app(environ, lambda status, headers, *_: started.extend([status, dict(headers)]))
    body = b"".join(parts)
    if hasattr(parts, "close"):
        parts.close()
    return started[0], started[1], body


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return open_storage(f"sqlite:///{tmp_path / 'study.db'}")


def add(storage: RDBStorage, *trials: tuple[float, float, float], name: str = "s") -> None:
    """Trials of (accuracy, ms, constraint); at most 0 is feasible."""
    study = optuna.create_study(
        study_name=name, storage=storage, directions=["maximize", "minimize"], load_if_exists=True
    )
    for accuracy, ms, over in trials:
        limits = {"constraints:latency.max": over, "constraints": [over]}
        study.add_trial(create_trial(values=[accuracy, ms], system_attrs=limits))


def best(app: Any, query: str = "after=0") -> list[int]:
    status, headers, body = get(app, "/api/studies/1", query)
    assert status == "200 OK"
    assert int(headers["Content-Length"]) == len(body)
    return [one["number"] for one in json.loads(body)["best_trials"]]


def test_best_trials_are_the_front_within_the_bounds(storage: RDBStorage, tmp_path: Path) -> None:
    from optuna_dashboard import wsgi

    # The first beats all others in both and breaks the bound; the third is beaten by the second.
    add(storage, (0.9, 9.0, 0.5), (0.8, 10.0, -0.1), (0.7, 11.0, -0.1), (0.85, 12.0, 0.0))
    assert best(wsgi(storage)) == [0]
    app = optuna_app(storage, tmp_path)
    assert best(app) == [1, 3]
    (first, _) = json.loads(get(app, "/api/studies/1")[2])["best_trials"]
    assert first["values"] == [0.8, 10.0]
    assert first["constraints"] == [-0.1]


def test_later_polls_know_all_best_trials_and_new_ones(storage: RDBStorage, tmp_path: Path) -> None:
    add(storage, (0.8, 10.0, -0.1), (0.9, 9.0, 0.5))
    app = optuna_app(storage, tmp_path)
    assert best(app) == [0]
    add(storage, (0.82, 11.0, -0.1))
    assert best(app, "after=2") == [0, 2]


def test_without_a_feasible_trial_there_is_no_best(storage: RDBStorage, tmp_path: Path) -> None:
    app = optuna_app(storage, tmp_path)
    add(storage)
    assert best(app) == []
    add(storage, (0.8, 10.0, 0.1))
    assert best(app) == []


def test_all_else_is_as_it_was(storage: RDBStorage, tmp_path: Path) -> None:
    from optuna_dashboard import wsgi

    add(storage, (0.8, 10.0, -0.1), (0.9, 9.0, 0.5))
    single = optuna.create_study(study_name="theirs", storage=storage)
    single.add_trial(create_trial(value=1.0))
    app, stock = optuna_app(storage, tmp_path), wsgi(storage)
    for path in ("/api/studies", "/api/studies/2", "/api/studies/99", "/dashboard", "/csv/1"):
        assert get(app, path)[0] == get(stock, path)[0]
        assert get(app, path)[2] == get(stock, path)[2]
    ours, theirs = (json.loads(get(one, "/api/studies/1")[2]) for one in (app, stock))
    assert ours.pop("best_trials") != theirs.pop("best_trials")
    assert ours == theirs


def test_without_the_package_the_extra_is_named(
    storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(MissingExtraError, match=r"sparsevit\[dashboard\]"):
        optuna_app(storage, tmp_path)
