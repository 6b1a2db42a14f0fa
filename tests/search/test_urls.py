"""Variables in database URLs, and passwords that nobody sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from sparsevit.search.storage import shown
from sparsevit.search.urls import expanded, masked


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_any_password_arrives_as_it_is(password: str) -> None:
    url = make_url(expanded("postgresql+psycopg://me:${PW}@host:5432/${DB}", {"PW": password, "DB": "trials"}))
    assert (url.username, url.password, url.host, url.port, url.database) == ("me", password, "host", 5432, "trials")


def test_a_whole_url_or_path_is_taken_as_it_is() -> None:
    known = {"URL": "postgresql://a:b%40@h/d", "HOME": "/home/me", "FOLDER": "my runs"}
    assert expanded("${URL}", known) == known["URL"]
    assert expanded("sqlite:///${HOME}/${FOLDER}/x.db", known) == "sqlite:////home/me/my runs/x.db"
    assert expanded("sqlite:///x.db", known) == "sqlite:///x.db"


@pytest.mark.parametrize(("url", "said"), [("${GONE}", "variable GONE is not set"), ("x://${a b}@h", "names no")])
def test_variables_that_are_not_there(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expanded(url, {"EMPTY": ""})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:se/c@ret@host/db", "postgresql://me:***@host/db"),
        ("storage.url = 'mysql://me:pw@h/d': bad", "storage.url = 'mysql://me:***@h/d': bad"),
        ("postgresql://me:${PW}@host/db", "postgresql://me:${PW}@host/db"),
        ("postgresql://h/d?user=me&password=pw&sslmode=require", "postgresql://h/d?user=me&password=***&sslmode=require"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("sqlite:///runs/x.db", "sqlite:///runs/x.db"),
    ],
)  # fmt: skip
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_shown_database_has_no_password() -> None:
    assert shown("postgresql://me:hunter2@h/d?password=hunter3") == "postgresql://me:***@h/d?password=***"
