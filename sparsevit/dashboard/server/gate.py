"""The door of the server. Everything passes it: who may come in, what they may do, and what browsers are told.

Refused are requests under a foreign name (DNS rebinding), from a foreign page (CSRF), without the token where one is
needed, and with any method that could write, unless writing was allowed.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]

COOKIE = "sparsevit_dashboard"
UPDATE = "/_dash-update-component"
"""The one path of ours that is posted to; it computes figures and stores nothing."""

MAX_BODY = 1 << 20
_READ = ("GET", "HEAD")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Rules:
    """Whom the gate lets in.

    Attributes:
        host: the address the server is bound to.
        token: what has to be shown once; `None` on loopback alone.
        names: further host names under which the server may be called.
        writable: paths that may be written to, as prefixes; empty for a read-only server.
        policies: content security policies by the prefix of their paths, the longest first; "" for all others.
    """

    host: str
    token: str | None = None
    names: Sequence[str] = ()
    writable: Sequence[str] = ()
    policies: Sequence[tuple[str, str]] = field(default=(("", "default-src 'self'"),))


def policy(scripts: Sequence[str]) -> str:
    """A content security policy that lets our own files and these scripts run.

    Dash and plotly write styles into elements, and plotly draws its pictures from `data:` and `blob:`.
    """
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src 'self'", *scripts]),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


class Gate:
    """WSGI middleware that keeps `Rules`, adds security headers and compresses what is large."""

    def __init__(self, app: Wsgi, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._loopback = is_loopback(rules.host)
        own = () if self._loopback else (socket.gethostname(), socket.getfqdn())
        self._names = {name.lower() for name in (*_LOOPBACK_NAMES, *own, rules.host.strip("[]"), *rules.names)}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO") or "/"
        start = self._dressed(path, start_response)
        refused = self._stranger(environ) or self._forbidden(environ, path)
        if refused:
            return _plain(start, *refused)
        if self._rules.token is not None and not self._knows_cookie(environ):
            return self._ask(environ, path, start, self._rules.token)
        return _compressed(self._app, environ, start)

    def _stranger(self, environ: Environ) -> tuple[str, str] | None:
        """What is wrong with the name that was called, or with the page that calls."""
        host = environ.get("HTTP_HOST", "")
        name = _host_name(host)
        if name is None or not (name in self._names or (not self._loopback and _is_address(name))):
            return "403 Forbidden", "This name is not one of this server's: start it with --allow-host NAME."
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "403 Forbidden", "Other pages may not call this server."
        if environ["REQUEST_METHOD"] not in _READ and environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in (
            "same-origin",
            "none",
        ):
            return "403 Forbidden", "Other pages may not call this server."
        return None

    def _forbidden(self, environ: Environ, path: str) -> tuple[str, str] | None:
        """What is wrong with what is asked for."""
        if environ["REQUEST_METHOD"] in _READ:
            return None
        updates = path == UPDATE and environ["REQUEST_METHOD"] == "POST"
        if not updates and not _under(path, self._rules.writable):
            return (
                "405 Method Not Allowed",
                "This server only reads: start it with --write to change notes and studies.",
            )
        length = environ.get("CONTENT_LENGTH") or ""
        if "HTTP_TRANSFER_ENCODING" in environ or (length and not length.isdigit()):
            return "411 Length Required", "Say how long the request is."
        if updates and int(length or 0) > MAX_BODY:
            return "413 Content Too Large", "That is more than a page ever asks."
        return None

    def _knows_cookie(self, environ: Environ) -> bool:
        try:
            sent = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
        except CookieError:
            return False
        token = self._rules.token or ""
        return sent is not None and _same(sent.value, _proof(token))

    def _ask(self, environ: Environ, path: str, start: StartResponse, token: str) -> Iterable[bytes]:
        """Let in who shows the token, in the address or as a bearer, and keep a proof of it in a cookie."""
        scheme, _, bearer = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and _same(bearer.strip(), token):
            return _compressed(self._app, environ, start)
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        shown = next((value for key, value in query if key == "token"), None)
        if shown is None or not _same(shown, token) or environ["REQUEST_METHOD"] not in _READ:
            return _plain(start, "401 Unauthorized", "Open the address with ?token=… that the server printed.")
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        # A path of two slashes would lead the browser to another host.
        target = "/" + quote(path.encode("latin-1").lstrip(b"/\\")) + (f"?{rest}" if rest else "")
        cookie = f"{COOKIE}={_proof(token)}; Path=/; HttpOnly; SameSite=Strict"
        start("303 See Other", [("Location", target), ("Set-Cookie", cookie), ("Content-Length", "0")])
        return []

    def _dressed(self, path: str, start_response: StartResponse) -> StartResponse:
        """Adds the headers that browsers keep to, in place of those of the same name."""
        content = next((text for prefix, text in self._rules.policies if _under(path, [prefix])), "")
        added = [*_HEADERS, ("Content-Security-Policy", content)]
        names = {name.lower() for name, _ in added} | {"server", "x-powered-by"}

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [one for one in headers if one[0].lower() not in names] + added, *rest)

        return start


def _host_name(host: str) -> str | None:
    """The name in a Host header without its port; `None` if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.netloc != host or parts.username is not None or parts.path or parts.port == 0:
            return None
        return parts.hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    """No page of another site is served under an address, so one cannot be rebound."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _under(path: str, prefixes: Iterable[str]) -> bool:
    return any(not prefix or path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode("utf-8", "replace"), second.encode("utf-8", "replace"))


def _proof(token: str) -> str:
    """What the cookie holds: it opens this server, and does not tell the token."""
    return hmac.new(token.encode(), b"sparsevit dashboard", hashlib.sha256).hexdigest()


def _plain(start: StartResponse, status: str, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


def _compressed(app: Wsgi, environ: Environ, start: StartResponse) -> Iterable[bytes]:
    """The answer of `app`, gzipped where that helps and the browser reads it."""
    answers = environ["REQUEST_METHOD"] == "GET" or environ.get("PATH_INFO") == UPDATE
    if not answers or "gzip" not in environ.get("HTTP_ACCEPT_ENCODING", ""):
        return app(environ, start)
    if "HTTP_IF_NONE_MATCH" in environ:
        environ = {**environ, "HTTP_IF_NONE_MATCH": environ["HTTP_IF_NONE_MATCH"].removeprefix("W/")}
    begun: list[Any] = []

    def hold(status: str, headers: list[tuple[str, str]], *rest: Any) -> None:
        begun[:] = [status, headers, rest]

    answer = app(environ, hold)
    body = b"".join(answer)
    close = getattr(answer, "close", None)
    if close is not None:
        close()
    status, headers, rest = begun
    told = {name.lower(): value for name, value in headers}
    kind = told.get("content-type", "").partition(";")[0]
    texts = kind.startswith("text/") or kind in ("application/javascript", "application/json", "image/svg+xml")
    if texts and len(body) > 1024 and "content-encoding" not in told and status.startswith("200"):
        body = gzip.compress(body, 6, mtime=0)
        headers = [one for one in headers if one[0].lower() not in ("content-length", "etag")]
        if "etag" in told:  # weak, as other bytes say the same: RFC 9110, 8.8.1
            headers.append(("ETag", f"W/{told['etag'].removeprefix('W/')}"))
        headers += [("Content-Encoding", "gzip"), ("Content-Length", str(len(body))), ("Vary", "Accept-Encoding")]
    start(status, headers, *rest)
    return [body]
