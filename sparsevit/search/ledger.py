"""What was paid for once and is never paid for again: accuracies, measured latencies, latency models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from sparsevit.latency.results import Timing
from sparsevit.search.patience import patiently
from sparsevit.search.tables import accuracies, latencies, latency_models
from sparsevit.sparsity import Sparsity, SparsitySpace


@dataclass(frozen=True)
class Subject:
    """What figures in the ledger are of. Hashes are `digest`s.

    Attributes:
        size: height and width of an image, pixels.
        windows: windows of each stage at that size.
        evaluator: hash of what accuracies depend on besides the sparsity.
        target: text form of the latency target.
        environment: hash of the environment of that target.
        backbone: hash of the backbone's layers and shapes.
    """

    size: tuple[int, int]
    windows: tuple[int, ...]
    evaluator: str
    target: str
    environment: str
    backbone: str

    def kept(self, sparsity: Sparsity) -> str:
        """The key of a configuration: configurations that keep the same windows share it."""
        height, width = self.size
        return f"{height}x{width} keeps {','.join(map(str, sparsity.kept(self.windows)))}"


@dataclass(frozen=True)
class Accuracy:
    """Metrics (fractions) of a configuration, and the seconds that finding them took."""

    metrics: Mapping[str, float]
    seconds: float


class Ledger:
    """Figures of one subject. A figure that is there is never overwritten; a database that is away is waited for."""

    def __init__(self, engine: Engine, subject: Subject) -> None:
        self._engine = engine
        self.subject = subject

    def accuracy(self, sparsity: Sparsity, images: int | None) -> Accuracy | None:
        """The accuracy on the first `images` images (all for `None`), if known."""
        return self.accuracies([sparsity], images)[0]

    def accuracies(self, sparsities: Sequence[Sparsity], images: int | None) -> list[Accuracy | None]:
        """The accuracy of each, where known; reads all in one query."""
        query = sa.select(accuracies.c.kept, accuracies.c.metrics, accuracies.c.seconds).where(
            accuracies.c.evaluator == self.subject.evaluator, accuracies.c.images == (images or 0)
        )
        if len(sparsities) == 1:
            query = query.where(accuracies.c.kept == self.subject.kept(sparsities[0]))
        rows = self._read(query)
        known = {kept: Accuracy(json.loads(metrics), seconds) for kept, metrics, seconds in rows}
        return [known.get(self.subject.kept(sparsity)) for sparsity in sparsities]

    def evaluation_seconds(self) -> dict[int, list[float]]:
        """Seconds that accuracies took to find, by the number of images they are of; 0 is all."""
        query = sa.select(accuracies.c.images, accuracies.c.seconds)
        found: dict[int, list[float]] = {}
        for images, seconds in self._read(query.where(accuracies.c.evaluator == self.subject.evaluator)):
            found.setdefault(images, []).append(seconds)
        return found

    def put_accuracy(self, sparsity: Sparsity, images: int | None, accuracy: Accuracy) -> None:
        self._insert(
            accuracies,
            evaluator=self.subject.evaluator,
            images=images or 0,
            kept=self.subject.kept(sparsity),
            sparsity=str(sparsity),
            metrics=json.dumps(dict(accuracy.metrics)),
            seconds=accuracy.seconds,
        )

    def latencies(self, sparsities: Sequence[Sparsity]) -> list[Timing | None]:
        """The measured latency of each, where known."""
        columns = (latencies.c.median_ms, latencies.c.low_ms, latencies.c.high_ms, latencies.c.samples)
        query = sa.select(latencies.c.kept, *columns).where(
            latencies.c.target == self.subject.target,
            latencies.c.environment == self.subject.environment,
            latencies.c.backbone == self.subject.backbone,
        )
        known = {row[0]: Timing(*row[1:]) for row in self._read(query)}
        return [known.get(self.subject.kept(sparsity)) for sparsity in sparsities]

    def all_latencies(self) -> dict[Sparsity, Timing]:
        """Every measured latency of the subject, by the configuration that was measured."""
        columns = (latencies.c.median_ms, latencies.c.low_ms, latencies.c.high_ms, latencies.c.samples)
        query = sa.select(latencies.c.sparsity, *columns).where(
            latencies.c.target == self.subject.target,
            latencies.c.environment == self.subject.environment,
            latencies.c.backbone == self.subject.backbone,
        )
        return {Sparsity.parse(row[0]): Timing(*row[1:]) for row in self._read(query)}

    def latency_history(self) -> list[tuple[Sparsity, Timing, datetime]]:
        """Every measured latency of the subject and when (UTC) it was stored, oldest first."""
        columns = (latencies.c.median_ms, latencies.c.low_ms, latencies.c.high_ms, latencies.c.samples)
        query = sa.select(latencies.c.sparsity, latencies.c.created, *columns).where(
            latencies.c.target == self.subject.target,
            latencies.c.environment == self.subject.environment,
            latencies.c.backbone == self.subject.backbone,
        )
        rows = self._read(query.order_by(latencies.c.created))
        return [(Sparsity.parse(row[0]), Timing(*row[2:]), row[1]) for row in rows]

    def put_latency(self, sparsity: Sparsity, timing: Timing) -> None:
        self._insert(
            latencies,
            target=self.subject.target,
            environment=self.subject.environment,
            backbone=self.subject.backbone,
            kept=self.subject.kept(sparsity),
            sparsity=str(sparsity),
            median_ms=timing.median_ms,
            low_ms=timing.low_ms,
            high_ms=timing.high_ms,
            samples=timing.samples,
        )

    def latency_model(self, space: str) -> str | None:
        """The JSON of the latency model for the space of this hash, if one was fitted."""
        table = latency_models
        query = sa.select(table.c.model).where(
            table.c.target == self.subject.target,
            table.c.environment == self.subject.environment,
            table.c.backbone == self.subject.backbone,
            table.c.space == space,
        )
        return next((text for (text,) in self._read(query)), None)

    def put_latency_model(self, space: str, model: str) -> None:
        """Store a latency model, in the place of one that is there: of an older format, or fitted to less."""
        table = latency_models
        key = {
            "target": self.subject.target,
            "environment": self.subject.environment,
            "backbone": self.subject.backbone,
            "space": space,
        }

        def write() -> None:
            with self._engine.begin() as connection:
                connection.execute(table.delete().where(*(table.c[name] == value for name, value in key.items())))
                connection.execute(table.insert().values(created=_now(), model=model, **key))

        patiently(write)

    def latency_models_elsewhere(self, space: str) -> list[str]:
        """The JSON of latency models of the same target, backbone and space in other environments, newest first."""
        table = latency_models
        query = sa.select(table.c.model).where(
            table.c.target == self.subject.target,
            table.c.environment != self.subject.environment,
            table.c.backbone == self.subject.backbone,
            table.c.space == space,
        )
        return [text for (text,) in self._read(query.order_by(table.c.created.desc()))]

    def _read(self, query: sa.Select[Any]) -> list[tuple[Any, ...]]:
        def read() -> list[tuple[Any, ...]]:
            with self._engine.connect() as connection:
                return [tuple(row) for row in connection.execute(query)]

        return patiently(read)

    def _insert(self, table: sa.Table, **values: Any) -> None:
        def insert() -> None:
            # Another worker may have paid for the same: the first entry stays.
            with suppress(sa.exc.IntegrityError), self._engine.begin() as connection:
                connection.execute(table.insert().values(created=_now(), **values))

        patiently(insert)


def all_latency_models(engine: Engine) -> list[str]:
    """The JSON of every latency model in a database, newest first."""
    query = sa.select(latency_models.c.model).order_by(latency_models.c.created.desc())
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def digest(value: Any) -> str:
    """A hash (64 hexadecimal digits) of anything that JSON can write; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def space_key(space: SparsitySpace) -> str:
    """Under which the ledger keeps latency models of a space."""
    return digest([space.depths, [str(value) for value in space.grid]])
