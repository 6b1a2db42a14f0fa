"""Opens the database of a study: Optuna's tables and the ledger's, made at once or not at all.

SQLite is set up so that several processes may write: every transaction takes the write lock when it begins, and readers
are not blocked (WAL).
"""

from __future__ import annotations

import glob
import os
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Engine, make_url

from sparsevit.errors import MissingExtraError, UserError
from sparsevit.search.tables import VERSION_TABLE
from sparsevit.search.urls import masked

HEARTBEAT_S = 30
GRACE_S = 300
"""A trial whose worker gave no sign for so long counts as dead."""

LOCK_WAIT_S = 60
_URL_FORMS = "write it like sqlite:///trials.db or postgresql+psycopg://user@host/name"
_SQLITE_HEADER = b"SQLite format 3\0"


def open_storage(url: str, *, create: bool = True) -> RDBStorage:
    """The database at `url`, ready for Optuna and the ledger (`storage.engine`).

    A new SQLite file appears complete: it is made under a temporary name and linked to its own, so that of two
    processes that come at once one wins and both go on.

    Args:
        url: as SQLAlchemy writes it.
        create: make what is missing; without it nothing is written.

    Raises:
        UserError: if it is no such database, cannot be reached or written, or (without `create`) is not there.
    """
    parsed = check_storage(url, writing=create)
    file = sqlite_file(parsed)
    if file is not None and not file.exists():
        if not create:
            raise UserError(f"there is no database {file}: start the search first, or name its folder with --out")
        _create_sqlite(file)
    with _one_line(parsed):
        storage = _connect(parsed, skip_table_creation=not create or file is not None, writing=create)
        if create:
            _migrate(storage.engine)
        elif not sa.inspect(storage.engine).has_table(VERSION_TABLE):
            raise UserError(f"{shown(url)} holds no search of this project")
    return storage


@contextmanager
def storage_at(url: str, *, create: bool = True) -> Iterator[RDBStorage]:
    """`open_storage` for a while: afterwards no connection is left, and SQLite's log is folded into its file."""
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def check_storage(url: str, *, writing: bool = True) -> URL:
    """Parse `url` and look at its file and folder, or call its server; writes nothing that stays.

    Raises:
        UserError: if the URL or the file is none of a database, it cannot be written to, or the server not reached.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except sa.exc.NoSuchModuleError:
        raise UserError(f"storage.url names the unknown database {make_url(url).drivername!r}: {_URL_FORMS}") from None
    except sa.exc.ArgumentError:
        raise UserError(f"storage.url is not a database URL: {_URL_FORMS}") from None
    if parsed.get_backend_name() == "sqlite":
        file = sqlite_file(parsed)
        if file is None:
            raise UserError("storage.url is a SQLite database in memory, which cannot be resumed: name a file")
        _check_sqlite(file, writing)
    else:
        with _one_line(parsed):
            engine = sa.create_engine(parsed)
            engine.connect().close()
            engine.dispose()
    return parsed


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database; `None` for other databases, and for one in memory."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def shown(url: str) -> str:
    """`url` without its password, nor one among its options."""
    return masked(make_url(url).render_as_string(hide_password=True))


def check_folder(folder: Path) -> None:
    """See whether files can be written to `folder`, which need not be there yet; leaves nothing behind.

    Raises:
        UserError: if they cannot.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".sparsevit-"):
            pass
    except OSError as error:
        reason = "it is not a folder" if not existing.is_dir() else (error.strerror or "no permission").lower()
        raise UserError(f"cannot write to {existing}: {reason}; choose another folder with --out") from None


@contextmanager
def accept_experimental() -> Iterator[None]:
    """For the few calls into Optuna that are marked experimental and that we do rely on (metric names, heartbeat)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _check_sqlite(file: Path, writing: bool) -> None:
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a database")
    if writing:
        check_folder(file.parent)
    if not file.exists():
        return
    try:
        with file.open("r+b" if writing else "rb") as stream:
            header = stream.read(len(_SQLITE_HEADER))
    except OSError as error:
        raise UserError(f"cannot open the database {file}: {(error.strerror or 'no permission').lower()}") from None
    if header != _SQLITE_HEADER:
        raise UserError(f"{file} is not a SQLite database: remove it, or name another with storage.url")
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        connection.close()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file} is not a usable SQLite database: {error}") from None
    if tables and "studies" not in tables:
        raise UserError(f"{file} is a database of something else: it has no table of studies; name another")


def _create_sqlite(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-", suffix=".part")
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        storage = _connect(make_url(f"sqlite:///{temporary.absolute()}"), skip_table_creation=False, writing=True)
        _migrate(storage.engine)
        storage.remove_session()
        storage.engine.dispose()  # the last connection to close folds the write-ahead log into the file
        try:
            os.link(temporary, file)
        except FileExistsError:
            pass  # another process was faster; its file is as good
        except OSError:
            os.replace(temporary, file)  # a file system without hard links
    finally:
        for leftover in file.parent.glob(f"{glob.escape(temporary.name)}*"):
            leftover.unlink()


def _connect(url: URL, *, skip_table_creation: bool, writing: bool) -> RDBStorage:
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        arguments = {"connect_args": {"timeout": LOCK_WAIT_S}}
    with accept_experimental():
        storage = RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=arguments,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            skip_table_creation=skip_table_creation,
        )
    if writing and url.get_backend_name() == "sqlite":
        sa.event.listen(storage.engine, "connect", _on_connect)
        sa.event.listen(storage.engine, "begin", _on_begin)
        storage.remove_session()
        storage.engine.dispose()  # connections opened before the listeners were there
    return storage


def _on_connect(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _on_begin does
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_begin(connection: sa.Connection) -> None:
    # A transaction that reads first and then wants to write fails when another one wrote in between; one that takes the
    # lock at once waits instead.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    """Bring the ledger's tables up to date, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _one_line(url: URL) -> Iterator[None]:
    """What a database or its driver complains about, in one line and without the password."""
    name = masked(url.render_as_string(hide_password=True))
    try:
        yield
    except ImportError:
        if url.get_backend_name() == "postgresql":
            raise MissingExtraError(f"the database {name}", "postgres") from None
        raise UserError(f"the Python driver for {name} is not installed") from None
    except (sa.exc.DBAPIError, StorageInternalError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error.__cause__
        reason = " ".join(str(cause).split())
        if url.password:
            reason = reason.replace(str(url.password), "***")
        raise UserError(f"cannot open the database {name}: {reason}") from None
    except RuntimeError as error:  # Optuna's word for a schema of another version
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
