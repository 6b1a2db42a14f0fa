"""Opens the database of a study: Optuna's tables and the ledger's, made at once or not at all.

SQLite is set up so that several processes may write: every transaction takes the write lock when it begins, and readers
are not blocked (WAL). What is committed survives the end of any process; when the power fails, the last transactions
may be lost, but never the database (synchronous = NORMAL).
"""

from __future__ import annotations

import fcntl
import glob
import os
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Engine, make_url

from sparsevit.errors import MissingExtraError, UserError
from sparsevit.folders import check_folder
from sparsevit.search.patience import UnreachableError, patiently
from sparsevit.search.tables import VERSION_TABLE
from sparsevit.search.urls import masked

LOCK_WAIT_S = 60
LOCK_POLL_S = 0.1
LOCK_POLLS_UNSAID = 20
_LOCK = 0x5BA25E  # any number that others are unlikely to lock on the same server
_URL_FORMS = "write it like sqlite:///trials.db or postgresql+psycopg://user@host/name"


def open_storage(url: str, *, create: bool = True) -> RDBStorage:
    """The database at `url`, ready for Optuna and the ledger (`storage.engine`).

    A new SQLite file appears complete: one process at a time makes it, under a temporary name.

    Args:
        url: as SQLAlchemy writes it.
        create: make what is missing; without it nothing is written.

    Raises:
        UserError: if it is no such database, cannot be written, or (without `create`) is not there; an
            `UnreachableError` if it may be in a while.
    """
    parsed = check_storage(url, writing=create)
    file = sqlite_file(parsed)
    if file is not None and not file.exists() and not create:
        raise UserError(f"there is no database {file}: start the search first, or name its folder with --out")
    with _one_line(parsed):
        if create:
            engine = sa.create_engine(parsed)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            with alone(engine):  # making tables from several processes at once fails
                if file is not None and not file.exists():
                    _create_sqlite(file)
                storage = _connect(parsed, skip_table_creation=file is not None, writing=True)
                _migrate(storage.engine)
            engine.dispose()
        else:
            storage = _connect(parsed, skip_table_creation=True, writing=False)
        if not create and not sa.inspect(storage.engine).has_table(VERSION_TABLE):
            raise UserError(f"{shown(url)} holds no search of this project")
    return storage


@contextmanager
def storage_at(url: str, *, create: bool = True, waiting: bool = False) -> Iterator[RDBStorage]:
    """`open_storage` for a while: afterwards no connection is left, and SQLite's log is folded into its file.

    With `waiting`, a database that cannot be reached is waited for.
    """
    storage = patiently(lambda: open_storage(url, create=create)) if waiting else open_storage(url, create=create)
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


@contextmanager
def packed(storage: RDBStorage) -> Iterator[sa.Connection]:
    """All that Optuna reads and writes meanwhile through `storage`, in one transaction: it happens as a whole or not.

    It is for one thread, which yields the connection to add statements of its own. Where something in it fails, objects
    of Optuna that were used in it remember what never happened: make new ones.
    """
    sessions = storage.scoped_session
    storage.remove_session()
    with storage.engine.begin() as connection:
        sessions.configure(bind=connection, join_transaction_mode="rollback_only")
        try:
            yield connection
        finally:
            storage.remove_session()
            sessions.configure(bind=storage.engine, join_transaction_mode="conditional_savepoint")


@contextmanager
def alone(engine: Engine, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the one lock of a database: only one process at a time, of all that use it, is inside.

    A process that ends, however it does, lets go of it.

    Args:
        engine: of SQLite (the lock is on its folder) or PostgreSQL (an advisory lock).
        waiting: called once if another process is inside for long.
    """
    hold = _hold_folder if engine.dialect.name == "sqlite" else _hold_server
    with hold(engine) as held:
        tries = 0
        while not held():
            tries += 1
            if waiting is not None and tries == LOCK_POLLS_UNSAID:
                waiting()
            time.sleep(LOCK_POLL_S)
        yield


@contextmanager
def accept_experimental() -> Iterator[None]:
    """For the few calls into Optuna that are marked experimental and that we do rely on (metric names)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def _hold_folder(engine: Engine) -> Iterator[Callable[[], bool]]:
    folder = os.open(Path(engine.url.database or "").absolute().parent, os.O_RDONLY)

    def held() -> bool:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        yield held
    finally:
        os.close(folder)


@contextmanager
def _hold_server(engine: Engine) -> Iterator[Callable[[], bool]]:
    if engine.dialect.name != "postgresql":
        yield lambda: True  # other servers: start the first worker before the rest
        return
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield lambda: bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar())
    finally:
        connection.invalidate()  # a connection that is closed for real holds no lock
        connection.close()


def _check_sqlite(file: Path, writing: bool) -> None:
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a database")
    if writing:
        check_folder(file.parent)
    if not file.exists():
        return
    # To close a file that SQLite has open in this process, even one opened for reading, drops SQLite's locks on it, and
    # then the database is damaged: so nothing but SQLite opens it.
    if not os.access(file, os.R_OK | (os.W_OK if writing else 0)):
        raise UserError(f"cannot open the database {file}: permission denied")
    no_database = f"{file} is not a SQLite database: remove it, or name another with storage.url"
    if file.stat().st_size == 0:
        raise UserError(no_database)
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise UserError(no_database) from None
        raise UserError(f"{file} is not a usable SQLite database: {error}") from None
    if tables and "studies" not in tables:
        raise UserError(f"{file} is a database of something else: it has no table of studies; name another")


def _create_sqlite(file: Path) -> None:
    prefix = f".{file.name}-"
    _remove(file.parent, f"{glob.escape(prefix)}*.part*")  # of processes that were killed here: no other is at it now
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=prefix, suffix=".part")
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        storage = _connect(make_url(f"sqlite:///{temporary.absolute()}"), skip_table_creation=False, writing=True)
        _migrate(storage.engine)
        storage.remove_session()
        storage.engine.dispose()  # the last connection to close folds the write-ahead log into the file
        os.replace(temporary, file)
    finally:
        _remove(file.parent, f"{glob.escape(temporary.name)}*")


def _remove(folder: Path, pattern: str) -> None:
    for leftover in folder.glob(pattern):
        leftover.unlink()


def _connect(url: URL, *, skip_table_creation: bool, writing: bool) -> RDBStorage:
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        arguments = {"connect_args": {"timeout": LOCK_WAIT_S}}
    # Optuna's own heartbeats go by the clock on the wall, and take a thread per trial: see worker.py.
    storage = RDBStorage(
        url.render_as_string(hide_password=False), engine_kwargs=arguments, skip_table_creation=skip_table_creation
    )
    if writing and url.get_backend_name() == "sqlite":
        sa.event.listen(storage.engine, "connect", _on_connect)
        sa.event.listen(storage.engine, "begin", _on_begin)
    elif url.get_backend_name() == "postgresql":
        sa.event.listen(storage.engine, "connect", _on_connect_postgres)
    storage.remove_session()
    storage.engine.dispose()  # connections opened before the listeners were there
    return storage


def _on_connect(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _on_begin does
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_connect_postgres(connection: Any, _: Any) -> None:
    # A worker that is stopped in the middle of a transaction holds up all others no longer than this.
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {LOCK_WAIT_S * 1000}")
    connection.commit()


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
        raise UnreachableError(f"cannot open the database {name}: {reason}") from None
    except RuntimeError as error:  # Optuna's word for a schema of another version
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
