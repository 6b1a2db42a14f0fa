"""Puts the server together and runs it: our pages, optuna-dashboard on the same database, and the gate before both."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sparsevit.dashboard.server.gate import Environ, Gate, Rules, StartResponse, Wsgi, is_loopback, policy
from sparsevit.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from sparsevit.search.spec import StudySpec

OPTUNA = ("/dashboard", "/api", "/static", "/artifacts", "/csv", "/favicon.ico")
"""Paths of optuna-dashboard, which knows no other place than the root of a server."""

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """Who may come in, and whether they may write.

    Attributes:
        host: the address to bind to.
        port: 0 for any that is free.
        token: what has to be shown; made up if none is given and the server is reached from other machines.
        names: host names under which the server may be called, besides its own.
        write: whether optuna-dashboard may change notes and studies.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    names: Sequence[str] = ()
    write: bool = False

    def checked(self) -> Access:
        """The same with a token where one is needed.

        Raises:
            UserError: if the token is one that can be guessed.
        """
        token = self.token
        if token is None and not is_loopback(self.host):
            token = secrets.token_urlsafe(24)
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise UserError(
                f"--token has {len(token)} characters: give {SHORTEST_TOKEN} or more, or none for a new one"
            )
        return Access(self.host, self.port, token, tuple(self.names), self.write)


def build(
    urls: Sequence[str],
    given: Mapping[str, tuple[StudySpec, str, Path | None]],
    access: Access,
    *,
    artifacts: Path,
    pages: Path | None = None,
) -> Wsgi:
    """The whole server as a WSGI application.

    Args:
        urls: databases; optuna-dashboard shows the first.
        given: study files, by `url name`.
        access: as `checked` gives it.
        artifacts: folder of what is attached to trials of the first database; it need not be there.
        pages: the folder of the pages, if not those of the project.

    Raises:
        UserError: if a database or a page cannot be read, or the extra is not installed.
    """
    try:
        import dash  # noqa: F401
    except ImportError:
        raise MissingExtraError("the dashboard", "dashboard") from None
    from sparsevit.dashboard.optuna_app import optuna_app
    from sparsevit.dashboard.server.app import make_app
    from sparsevit.dashboard.server.live import Database, Studies
    from sparsevit.dashboard.server.pages import load_pages
    from sparsevit.search.storage import open_storage

    shown = load_pages(pages)
    databases = [Database(url) for url in dict.fromkeys(urls)]
    studies = Studies(databases, given)
    with suppress(UserError):  # there may be none yet
        studies.get(None).now()  # Optuna takes a while to read thousands of trials, once; so no visitor waits for it
    app = make_app(studies, shown)
    stock = optuna_app(open_storage(urls[0], create=access.write), artifacts)
    rules = Rules(
        host=access.host,
        token=access.token,
        names=access.names,
        writable=OPTUNA if access.write else (),
        policies=(
            ("/artifacts", "default-src 'none'; sandbox; frame-ancestors 'none'"),
            # Its drawings make functions out of texts.
            ("/dashboard", policy(["'unsafe-eval'"])),
            ("", policy([f"'{one}'" if not one.startswith("'") else one for one in app.csp_hashes()])),
        ),
    )
    return Gate(_beside(app.server, stock), rules)


def _beside(ours: Wsgi, stock: Wsgi) -> Wsgi:
    def dispatch(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO") or "/"
        if any(path == one or path.startswith(f"{one}/") for one in OPTUNA):
            # It asks for this header without a look whether it is there.
            return stock({"HTTP_ACCEPT_ENCODING": "", **environ}, start)
        return ours(environ, start)

    return dispatch


def serve(app: Wsgi, access: Access, say: Callable[[str], object]) -> None:
    """Serve until Ctrl-C; says where, once.

    Raises:
        UserError: if the address cannot be bound to.
    """
    server = make_server(app, access)
    for line in greeting(access, server.port):
        say(line)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def make_server(app: Wsgi, access: Access) -> Any:
    """A server that listens already, a thread for each request; `port` says where.

    Raises:
        UserError: if the address cannot be bound to.
    """
    from werkzeug import serving

    class Quiet(serving.WSGIRequestHandler):
        timeout = 30  # seconds; who says nothing for so long is let go

        def log(self, *_: Any, **__: Any) -> None:
            """Addresses may hold a token, so none is written down."""

        def version_string(self) -> str:
            return "sparsevit"

    class Server(serving.ThreadedWSGIServer):
        daemon_threads = True

    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    try:
        # Bound here, as werkzeug would print its own words on what goes wrong.
        with socket.create_server((access.host.strip("[]"), access.port), family=family, backlog=128) as bound:
            return Server(access.host, bound.getsockname()[1], app, handler=Quiet, fd=bound.fileno())
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or "no such address").lower()
        raise UserError(f"cannot serve on {access.host} port {access.port}: {reason}; try another --port") from None


def greeting(access: Access, port: int) -> list[str]:
    """Where the server is found, and with which token."""
    host = f"[{access.host}]" if ":" in access.host else access.host
    shown = "localhost" if access.host in ("0.0.0.0", "::") else host
    token = f"?token={quote(access.token)}" if access.token else ""
    lines = [f"dashboard: http://{shown}:{port}/{token}", f"optuna:    http://{shown}:{port}/dashboard"]
    if not is_loopback(access.host):
        lines.append("reached from other machines, unencrypted: put it behind TLS, or use an SSH tunnel")
    if access.write:
        lines.append("--write: who comes in may change notes and delete studies in optuna-dashboard")
    return [*lines, "Ctrl-C ends it"]
