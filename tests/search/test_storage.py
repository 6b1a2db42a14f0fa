"""Opening databases: new ones appear whole, others are refused before anything is written."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sparsevit.errors import UserError
from sparsevit.folders import check_folder
from sparsevit.search.storage import check_storage, open_storage, shown
from sparsevit.search.tables import VERSION_TABLE, metadata


def refusal(url: str, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        open_storage(url, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_new_database_holds_everything_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "study.db"
    open_storage(f"sqlite:///{file}").engine.dispose()
    assert os.listdir(file.parent) == ["study.db"]
    with closing(sqlite3.connect(file)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"studies", "trials", *metadata.tables, VERSION_TABLE} <= names


def test_what_a_killed_process_left_of_a_database_is_removed(tmp_path: Path) -> None:
    for name in (".study.db-x1.part", ".study.db-x1.part-wal", ".other.db-x1.part"):
        (tmp_path / name).write_bytes(b"half")
    open_storage(f"sqlite:///{tmp_path / 'study.db'}").engine.dispose()
    assert sorted(os.listdir(tmp_path)) == [".other.db-x1.part", "study.db"]


def test_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    with storage.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_type": True,
                "include_name": lambda name, kind, _: kind != "table" or name.startswith("sparsevit_"),
            },
        )
        assert compare_metadata(context, metadata) == []


def test_a_plain_optuna_database_is_extended(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(study_name="theirs", storage=url)
    assert "holds no search of this project" in refusal(url, create=False)
    storage = open_storage(url)
    assert optuna.get_all_study_names(storage) == ["theirs"]
    assert set(metadata.tables) <= set(sa.inspect(storage.engine).get_table_names())


def test_processes_that_come_at_once_share_one_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    code = f"from sparsevit.search.storage import open_storage; open_storage({url!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert [name for name in os.listdir(tmp_path) if name.endswith(".part")] == []


def test_transactions_that_read_first_wait_for_each_other(tmp_path: Path) -> None:
    engine = open_storage(f"sqlite:///{tmp_path / 'study.db'}").engine
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE counter AS SELECT 0 AS value")

    def count() -> None:
        for _ in range(20):
            with engine.begin() as connection:
                value = connection.exec_driver_sql("SELECT value FROM counter").scalar_one()
                connection.exec_driver_sql(f"UPDATE counter SET value = {value + 1}")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT value FROM counter").scalar_one() == 80


def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    for content in (b"", b"just some text, and more of it"):
        file.write_bytes(content)
        assert "is not a SQLite database" in refusal(f"sqlite:///{file}")
        assert file.read_bytes() == content
    file.write_bytes(b"SQLite format 3\0" + b"rubbish" * 100)
    assert str(file) in refusal(f"sqlite:///{file}")
    assert os.listdir(tmp_path) == ["study.db"]


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "photos.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE photos (id INTEGER)")
    assert "a database of something else" in refusal(f"sqlite:///{file}")


def test_reading_makes_nothing(tmp_path: Path) -> None:
    assert "start the search first" in refusal(f"sqlite:///{tmp_path / 'study.db'}", create=False)
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "deeper")
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="cannot write to /proc"):
        check_folder(Path("/proc/runs/x"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="it is not a folder"):
        check_folder(tmp_path / "file" / "runs")
    assert "cannot write to /proc" in refusal("sqlite:////proc/runs/study.db")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("study.db", "not a database URL"),
        ("nosql://host/name", "unknown database 'nosql'"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_urls_that_are_none(url: str, words: str) -> None:
    assert words in refusal(url)


def test_passwords_are_never_shown() -> None:
    url = "postgresql+psycopg://user:hunter2@127.0.0.1:1/name"
    assert shown(url) == "postgresql+psycopg://user:***@127.0.0.1:1/name"
    with pytest.raises(UserError) as caught:  # the driver is missing, or the server
        check_storage(url)
    for text in (refusal(url), str(caught.value)):
        assert "hunter2" not in text
        assert "user:***@127.0.0.1" in text
