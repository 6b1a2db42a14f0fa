"""Every door of the server is tried from outside."""

from __future__ import annotations

import gzip
import http.client
import threading
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import Client

from sparsevit.dashboard.server.gate import COOKIE, Gate, Rules, is_loopback, policy
from sparsevit.errors import UserError

TOKEN = "a-token-of-24-characters"
LOCAL = {"Host": "localhost:8080"}


def echo(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Server", "secret/1.0"), ("X-Frame-Options", "ALLOWALL")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}".encode()]


def client(app: Any = echo, **rules: Any) -> Client:
    return Client(Gate(app, Rules(**({"host": "127.0.0.1"} | rules))))


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "LOCALHOST"])
def test_a_server_on_loopback_answers_to_its_own_names(host: str) -> None:
    assert client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "192.0.2.7",
        "",
        "a@localhost",
        "localhost/x",
        "[::",
    ],
)
def test_foreign_names_are_refused(host: str) -> None:
    assert client().get("/", headers={"Host": host}).status_code == 403


def test_names_that_were_allowed_are_answered_to() -> None:
    assert client(names=["search.example"]).get("/", headers={"Host": "search.example"}).status_code == 200


def test_a_server_on_all_addresses_answers_to_addresses_and_to_no_foreign_name() -> None:
    door = client(host="0.0.0.0", token=TOKEN)
    known = {"Authorization": f"Bearer {TOKEN}"}
    assert door.get("/", headers={"Host": "192.0.2.7:8080", **known}).status_code == 200
    assert door.get("/", headers={"Host": "evil.example", **known}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:9999", "null", "", "http://localhost"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_origins_are_refused(origin: str, method: str) -> None:
    headers = {**LOCAL, "Origin": origin}
    assert client().open("/_dash-update-component", method=method, headers=headers).status_code == 403


def test_the_own_origin_is_let_in() -> None:
    headers = {**LOCAL, "Origin": "http://localhost:8080"}
    assert client().post("/_dash-update-component", headers=headers, data="{}").status_code == 200


def test_a_foreign_page_cannot_post_without_saying_where_from() -> None:
    headers = {**LOCAL, "Sec-Fetch-Site": "cross-site"}
    assert client().post("/_dash-update-component", headers=headers, data="{}").status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "X"])
@pytest.mark.parametrize("path", ["/", "/api/studies", "/api/studies/1", "//api/studies", "/api/../api/studies"])
def test_nothing_but_reading_is_let_through(method: str, path: str) -> None:
    answer = client().open(path, method=method, headers=LOCAL, environ_overrides={"REQUEST_METHOD": method})
    assert answer.status_code == 405


def test_with_write_the_paths_that_were_named_are_writable_and_no_others() -> None:
    door = client(writable=["/api"])
    assert door.delete("/api/studies/1", headers=LOCAL).status_code == 200
    assert door.delete("/apis", headers=LOCAL).status_code == 405
    assert door.delete("/", headers=LOCAL).status_code == 405


def test_large_and_endless_requests_are_refused() -> None:
    door = client()
    assert door.post("/_dash-update-component", headers=LOCAL, data=b"x" * (1 << 21)).status_code == 413
    chunked = {**LOCAL, "Transfer-Encoding": "chunked"}
    assert door.post("/_dash-update-component", headers=chunked, data=b"x").status_code == 411


def test_every_answer_carries_the_headers_and_no_name_of_software() -> None:
    for answer in (client().get("/", headers=LOCAL), client().get("/", headers={"Host": "evil.example"})):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Content-Security-Policy" in answer.headers
        assert "Server" not in answer.headers


def test_the_policy_runs_our_own_files_alone() -> None:
    rules = dict(part.split(" ", 1) for part in policy(["'sha256-x'"]).split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self' 'sha256-x'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"


class TestToken:
    def door(self) -> Client:
        return client(token=TOKEN)

    def test_without_it_nothing_is_shown(self) -> None:
        for path in ("/", "/api/studies", "/static/x", "/_dash-layout"):
            assert self.door().get(path, headers=LOCAL).status_code == 401
        assert self.door().post("/_dash-update-component", headers=LOCAL, data="{}").status_code == 401

    @pytest.mark.parametrize("wrong", ["", "x", TOKEN[:-1], TOKEN + "x", "ü"])
    def test_a_wrong_one_is_refused(self, wrong: str) -> None:
        door = self.door()
        assert door.get("/", query_string={"token": wrong}, headers=LOCAL).status_code == 401
        assert door.get("/", headers={**LOCAL, "Cookie": f"{COOKIE}=x{len(wrong)}"}).status_code == 401

    def test_it_becomes_a_cookie_and_leaves_the_address(self) -> None:
        door = self.door()
        answer = door.get(f"/front?study=a&token={TOKEN}", headers=LOCAL)
        assert answer.status_code == 303
        assert answer.headers["Location"] == "/front?study=a"
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert door.get("/front", headers=LOCAL).data == b"GET /front"

    def test_the_token_itself_is_no_cookie(self) -> None:
        assert self.door().get("/", headers={**LOCAL, "Cookie": f"{COOKIE}={TOKEN}"}).status_code == 401

    def test_a_bearer_is_let_in(self) -> None:
        door = self.door()
        assert door.get("/", headers={**LOCAL, "Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert door.get("/", headers={**LOCAL, "Authorization": "Bearer"}).status_code == 401
        assert door.get("/", headers={**LOCAL, "Authorization": f"Basic {TOKEN}"}).status_code == 401

    @pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example"])
    def test_nobody_is_sent_elsewhere(self, path: str) -> None:
        answer = self.door().get(
            "/", query_string={"token": TOKEN}, headers=LOCAL, environ_overrides={"PATH_INFO": path}
        )
        assert answer.status_code == 303
        assert answer.headers["Location"].startswith("/evil.example")

    def test_a_line_break_in_the_address_makes_no_header(self) -> None:
        override = {"PATH_INFO": "/x\r\nSet-Cookie: a=b"}
        answer = self.door().get("/", query_string={"token": TOKEN}, headers=LOCAL, environ_overrides=override)
        assert "\n" not in answer.headers["Location"]


def test_what_is_large_is_compressed_for_those_who_read_it() -> None:
    def large(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", "9000")])
        return [b"x" * 9000]

    answer = client(large).get("/", headers={**LOCAL, "Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert int(answer.headers["Content-Length"]) == len(answer.data) < 1000
    assert gzip.decompress(answer.data) == b"x" * 9000
    assert client(large).get("/", headers=LOCAL).data == b"x" * 9000


def test_which_addresses_are_this_machine_alone() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.7", "search.example", ""]))


class TestAccess:
    def test_a_token_is_made_up_for_other_machines_alone(self) -> None:
        from sparsevit.dashboard.server.serve import Access

        assert Access().checked().token is None
        first, second = (Access(host="0.0.0.0").checked().token for _ in range(2))
        assert first is not None
        assert len(first) >= 32
        assert first != second
        assert Access(host="0.0.0.0", token=TOKEN).checked().token == TOKEN

    def test_one_that_can_be_guessed_is_refused(self) -> None:
        from sparsevit.dashboard.server.serve import Access

        with pytest.raises(UserError, match="--token has 6 characters"):
            Access(token="secret").checked()

    def test_the_greeting_tells_the_token_once_and_warns(self) -> None:
        from sparsevit.dashboard.server.serve import Access, greeting

        lines = greeting(Access(host="0.0.0.0", token=TOKEN, write=True), 80)
        assert "\n".join(lines).count(TOKEN) == 1
        assert any("unencrypted" in line for line in lines)
        assert any("--write" in line for line in lines)
        assert len(greeting(Access(), 80)) == 3


def test_a_real_server_keeps_the_same_rules() -> None:
    from sparsevit.dashboard.server.serve import Access, make_server

    access = Access(port=0, token=TOKEN)
    server = make_server(Gate(echo, Rules(host=access.host, token=TOKEN)), access)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        seen = {}
        for name, method, headers in (
            ("plain", "GET", {}),
            ("token", "GET", {"Authorization": f"Bearer {TOKEN}"}),
            ("foreign", "GET", {"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}),
            ("delete", "DELETE", {"Authorization": f"Bearer {TOKEN}"}),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request(method, "/api/studies/1", headers=headers)
            answer = connection.getresponse()
            seen[name] = answer.status
            assert answer.headers["Server"] == "sparsevit"
            connection.close()
        assert seen == {"plain": 401, "token": 200, "foreign": 403, "delete": 405}
        with pytest.raises(UserError, match=f"port {server.port}"):
            make_server(echo, Access(port=server.port))
    finally:
        server.shutdown()
        server.server_close()
