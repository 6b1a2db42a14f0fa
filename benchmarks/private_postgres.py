"""A PostgreSQL server of one's own for as long as a `with` block, from the installed binaries: no port, no password."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

USERS = ("postgres", "nobody")
"""As whom the server runs where root starts it, which it refuses to run as."""


@dataclass(frozen=True)
class Server:
    """A server in a folder of its own, reached through a socket there.

    Attributes:
        binaries: folder of `pg_ctl` and `initdb`.
        folder: data, log and socket.
        user: as whom it runs; `None` for whoever started it.
    """

    binaries: Path
    folder: Path
    user: str | None

    @property
    def url(self) -> str:
        """Of the database that is there from the start."""
        return self._url("postgres")

    def database(self, name: str) -> str:
        """The URL of a new database."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return self._url(name)

    def start(self) -> None:
        # A server that is killed loses nothing without fsync; only a machine that crashes would.
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str) -> None:
        """Stop it as `pg_ctl -m` does: `fast` rolls transactions back, `immediate` is a crash."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def create(self) -> None:
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync")

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://tester@/{name}?host={self.folder}"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, name: str, *words: str) -> None:
        command = [str(self.binaries / name), *words]
        # Its output goes to a file: a pipe would be held open by the server.
        with (self.folder / f"{name}.out").open("wb") as out:
            done = subprocess.run(
                command, user=self.user, stdout=out, stderr=subprocess.STDOUT, cwd=self.folder, check=False
            )
        if done.returncode:
            said = (self.folder / f"{name}.out").read_text(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")


def missing() -> str | None:
    """Why no server can be started here; `None` if one can."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed"
    if _binaries() is None:
        return "no PostgreSQL server is installed"
    if os.geteuid() == 0 and _other_user() is None:
        return f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}"
    return None


@contextmanager
def private_postgres() -> Iterator[Server]:
    """A running server; it and its folder are gone afterwards."""
    binaries = _binaries()
    assert binaries is not None
    # A socket's path is short, so not below a long one.
    folder = Path(tempfile.mkdtemp(prefix="sparsevit-postgres-", dir="/tmp"))
    user = _other_user() if os.geteuid() == 0 else None
    try:
        if user is not None:
            shutil.chown(folder, user)
        server = Server(binaries, folder, user)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    """The newest server's folder, where Debian puts it or where PATH finds it."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


def _other_user() -> str | None:
    names = {one.pw_name for one in pwd.getpwall()}
    return next((user for user in USERS if user in names), None)
