"""Studies as they are now: read again only when something changed in their database."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import optuna
import sqlalchemy as sa

from sparsevit.errors import UserError
from sparsevit.search.load import assemble
from sparsevit.search.patience import AWAY, UnreachableError
from sparsevit.search.record import RECORD, read_record
from sparsevit.search.results import StudyResults
from sparsevit.search.storage import open_storage, shown
from sparsevit.search.tables import accuracies, latencies, latency_models

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study

    from sparsevit.search.spec import StudySpec

Made = TypeVar("Made")

_TRIALS = sa.text(
    "SELECT state, COUNT(*), MAX(trial_id), MAX(datetime_complete) FROM trials WHERE study_id = :study GROUP BY state"
)
_ATTRIBUTES = sa.text("SELECT key, value_json FROM study_user_attributes WHERE study_id = :study")


class Database:
    """One database, read by one thread at a time; Optuna's cache of finished trials stays between readings."""

    def __init__(self, url: str) -> None:
        """Raises a UserError if there is no such database."""
        self.url = url
        self._storage = open_storage(url, create=False)
        self._lock = threading.Lock()
        self._studies: dict[str, Study] = {}

    @contextmanager
    def reading(self) -> Iterator[RDBStorage]:
        """The storage, for this thread alone.

        Raises:
            UnreachableError: if the database does not answer.
        """
        with self._lock:
            try:
                yield self._storage
            except AWAY:  # whose words name host and user
                raise UnreachableError("the database does not answer now: load this page again once it does") from None
            finally:
                self._storage.remove_session()

    def names(self) -> list[str]:
        """The studies of this project in it."""
        query = sa.text(
            "SELECT study_name FROM studies JOIN study_user_attributes USING (study_id) WHERE key = :key ORDER BY 1"
        )
        with self.reading() as storage, storage.engine.connect() as connection:
            return list(connection.execute(query, {"key": RECORD}).scalars())

    def stamp(self, name: str) -> str:
        """Changes whenever anything that results depend on does."""
        with self.reading() as storage, storage.engine.connect() as connection:
            study = connection.execute(
                sa.text("SELECT study_id FROM studies WHERE study_name = :n"), {"n": name}
            ).scalar()
            if study is None:
                raise UserError(f"the study {name!r} is not in {shown(self.url)} any more")
            seen = [
                tuple(row) for query in (_TRIALS, _ATTRIBUTES) for row in connection.execute(query, {"study": study})
            ]
            for table in (accuracies, latencies, latency_models):
                latest = sa.select(sa.func.count(), sa.func.max(table.c.created)).select_from(table)
                seen += [tuple(row) for row in connection.execute(latest)]
        return hashlib.sha256(repr(sorted(map(str, seen))).encode()).hexdigest()[:16]

    def results(self, name: str) -> StudyResults:
        """Everything known about a study."""
        with self.reading() as storage:
            study = self._studies.get(name) or optuna.load_study(study_name=name, storage=storage)
            self._studies[name] = study
            record = read_record(study)
            if record is None:
                raise UserError(f"the study {name!r} is still being made")
            return assemble(study, record, storage)


@dataclass
class LiveStudy:
    """One study, its results as of the last change, and what was made of them."""

    database: Database
    name: str
    spec: StudySpec | None = None
    """Its study file, where one was given: it alone knows the supernet."""
    file: str | None = None
    """How that file was named."""
    out: Path | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stamp = ""
        self._results: StudyResults | None = None
        self._made: dict[str, object] = {}

    def stamp(self) -> str:
        return self.database.stamp(self.name)

    def now(self) -> tuple[str, StudyResults]:
        """The present stamp, and the results of that moment."""
        with self._lock:
            stamp = self.database.stamp(self.name)
            if self._results is None or stamp != self._stamp:
                # What comes in between is in the results and not in the stamp: it is read once more then.
                self._results, self._stamp, self._made = self.database.results(self.name), stamp, {}
            return stamp, self._results

    def made(self, key: str, make: Callable[[StudyResults], Made]) -> tuple[str, Made]:
        """The present stamp, and what `make` makes of the results; made once for each change."""
        stamp, results = self.now()
        with self._lock:
            if stamp == self._stamp and key in self._made:
                return stamp, self._made[key]  # type: ignore[return-value]  # a key stands for one kind of thing
        made = make(results)
        with self._lock:
            if stamp == self._stamp:
                self._made[key] = made
        return stamp, made


class Studies:
    """All studies that a server shows, by name; the first database's come first, and new ones appear by themselves."""

    def __init__(self, databases: Sequence[Database], given: Mapping[str, tuple[StudySpec, str, Path | None]]) -> None:
        """`given`: study files by the URL of their database and their name, as `url name`."""
        self._databases = list(databases)
        self._given = dict(given)
        self._lock = threading.Lock()
        self._known: dict[str, LiveStudy] = {}

    def all(self) -> dict[str, LiveStudy]:
        """By the name they are shown under: their own, with a number where two databases have the same."""
        found: dict[str, LiveStudy] = {}
        with self._lock:
            for place, database in enumerate(self._databases):
                own = [name for name in database.names() if f"{database.url} {name}" in self._given]
                for name in dict.fromkeys([*own, *database.names()]):  # what was asked for comes first
                    key = name if name not in found else f"{name} ({place + 1})"
                    spec, file, out = self._given.get(f"{database.url} {name}", (None, None, None))
                    found[key] = self._known.get(key) or LiveStudy(database, name, spec, file, out)
            self._known = found
        return dict(found)

    def get(self, name: str | None) -> LiveStudy:
        """The study of that name; the first for `None`.

        Raises:
            UserError: if there is none.
        """
        studies = self.all()
        if name is None:
            if not studies:
                raise UserError("this database holds no study yet: it appears here once its search has begun")
            return next(iter(studies.values()))
        if name not in studies:
            raise UserError(f"no study {name!r}; there are: {', '.join(studies) or 'none yet'}")
        return studies[name]
