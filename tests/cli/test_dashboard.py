from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dash")

from sparsevit.cli.app import main
from sparsevit.dashboard.server import serve as serving
from sparsevit.search.storage import open_storage


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["dashboard", *words])
    return int(stop.value.code or 0)


@pytest.fixture
def database(tmp_path: Path) -> str:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    storage.engine.dispose()
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been served, which ends at once."""
    seen: list[Any] = []
    monkeypatch.setattr(serving, "serve", lambda app, access, say: seen.append(access))
    return seen


def test_loopback_and_read_only_unless_told_otherwise(database: str, served: list[Any]) -> None:
    assert run("--storage", database) == 0
    (access,) = served
    assert (access.host, access.token, access.write) == ("127.0.0.1", None, False)


def test_other_addresses_get_a_token(database: str, served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--storage", database, "--host", "0.0.0.0") == 0
    monkeypatch.setenv("SPARSEVIT_DASHBOARD_TOKEN", "from-the-environment")
    assert run("--storage", database, "--host", "0.0.0.0", "--write") == 0
    assert len(served[0].token) >= 32
    assert served[1].token == "from-the-environment"
    assert served[1].write


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a study file or --storage URL"),
        (["studies/digits.toml", "--storage", "sqlite:///x.db"], "give a study file or --storage URL"),
        (["--storage", "sqlite:///gone.db"], "there is no database gone.db"),
        (["--storage", "nonsense"], "not a database URL"),
        (["gone.toml"], "there is no study file gone.toml"),
        (["--storage", "{database}", "--token", "short"], "--token has 5 characters"),
        (["--storage", "{database}", "--pages", "nowhere"], "nowhere holds no page"),
        (["--storage", "{database}", "--compare", "gone.toml"], "there is no study file gone.toml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    database: str, served: list[Any], words: list[str], said: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(*(word.replace("{database}", database) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not served
    assert {one.name.partition("-")[0] for one in tmp_path.iterdir()} == {"study.db"}


def test_an_address_that_is_taken_is_one_line(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run("--storage", database, "--port", str(taken.getsockname()[1])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "try another --port" in error


def test_without_the_extra_it_says_which(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "dash", None)
    assert run("--storage", database) == 2
    assert "sparsevit[dashboard]" in capsys.readouterr().err
