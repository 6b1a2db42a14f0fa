"""What opens the database stays with the server: a password in its URL is on no page, in no answer and in no log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from sparsevit.cli.app import main
from sparsevit.dashboard.server.pages import load_pages

SECRET = "Tr0ub4dor-and-3"
LOCAL = {"Host": "localhost"}
PATHS = (
    "/", "/_dash-layout", "/_dash-dependencies", "/finetune?study=digits&trial=0", "/finetune?study=x", "/picture",
    "/dashboard", "/api/meta", "/api/studies", "/api/studies/1?after=0", "/api/studies/99", "/artifacts/1/x",
    "/static/x", "/gone",
)  # fmt: skip


@pytest.fixture
def url(postgres: str) -> Iterator[str]:
    """A new database under a password, which this server does not ask for; connections to it are closed in the end."""
    used: set[sa.Engine] = set()

    def note(connection: sa.Connection) -> None:
        used.add(connection.engine)

    sa.event.listen(sa.Engine, "engine_connect", note)
    yield postgres.replace("tester@", f"tester:{SECRET}@")
    sa.event.remove(sa.Engine, "engine_connect", note)
    for engine in used:
        engine.dispose()


def answers(client: Any) -> str:
    """All that a visitor can read: every page, every file, every refusal."""
    said = []
    for slug in [*load_pages(), "gone"]:
        for search in ("", "?study=digits", "?study=gone"):
            body = {
                "output": "page.children",
                "outputs": {"id": "page", "property": "children"},
                "inputs": [
                    {"id": "url", "property": "pathname", "value": f"/{slug}"},
                    {"id": "url", "property": "search", "value": search},
                ],
                "changedPropIds": ["url.pathname"],
                "state": [],
            }
            said.append(client.post("/_dash-update-component", json=body, headers=LOCAL))
    said += [client.get(path, headers=LOCAL) for path in PATHS]
    said += [client.post("/api/studies", json={}, headers=LOCAL), client.get("/", headers={"Host": "evil.example"})]
    return "\n".join(f"{one.status} {json.dumps(dict(one.headers))} {one.text}" for one in said)


def test_a_password_of_postgresql_is_told_nobody(
    url: str, make: Any, serve: Callable[..., Any], capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    assert SECRET in url
    made = make(url)
    made.add(made.study(), 25, confirm=True)
    client = serve(url)
    said = answers(client)
    assert "digits: overview" in said
    captured = capfd.readouterr()
    assert SECRET not in said + captured.out + captured.err + caplog.text


def test_nor_when_the_database_is_gone(
    url: str, postgres_server: Any, make: Any, serve: Callable[..., Any], capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    assert SECRET in url
    made = make(url)
    made.add(made.study(), 25, confirm=True)
    client = serve(made.url)
    postgres_server.stop("immediate")
    try:
        said = answers(client)
    finally:
        postgres_server.start()
    captured = capfd.readouterr()
    assert "the database does not answer now" in said
    assert SECRET not in said + captured.out + captured.err + caplog.text
    assert "digits: overview" in answers(client)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/trials",
        f"postgresql+psycopg://me@127.0.0.1:1/trials?password={SECRET}",
        f"mysql://me:{SECRET}@127.0.0.1:1/trials",
        f"postgresql+nonsense://me:{SECRET}@127.0.0.1:1/trials",
    ],
)
def test_nor_by_the_command_that_cannot_open_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["dashboard", "--storage", url])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert SECRET not in said.out + said.err
