"""The ledger's tables beside Optuna's. Every change here needs a migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, DateTime, Float, Integer, MetaData, String, Table, Text

VERSION_TABLE = "sparsevit_alembic_version"

metadata = MetaData()

accuracies = Table(
    "sparsevit_accuracies",
    metadata,
    Column("evaluator", String(64), primary_key=True, comment="hash of what accuracies depend on"),
    Column("images", Integer, primary_key=True, autoincrement=False, comment="the first so many; 0 for all"),
    Column("kept", String(255), primary_key=True, comment="image size, and windows that layers keep"),
    Column("sparsity", Text, nullable=False),
    Column("metrics", Text, nullable=False, comment="JSON object of fractions"),
    Column("seconds", Float, nullable=False, comment="that the evaluation took"),
    Column("created", DateTime, nullable=False, comment="UTC"),
)

latencies = Table(
    "sparsevit_latencies",
    metadata,
    Column("target", String(255), primary_key=True),
    Column("environment", String(64), primary_key=True, comment="hash of device, driver and versions"),
    Column("backbone", String(64), primary_key=True, comment="hash of its layers and shapes"),
    Column("kept", String(255), primary_key=True),
    Column("sparsity", Text, nullable=False),
    Column("median_ms", Float, nullable=False),
    Column("low_ms", Float, nullable=False),
    Column("high_ms", Float, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("created", DateTime, nullable=False, comment="UTC"),
)

latency_models = Table(
    "sparsevit_latency_models",
    metadata,
    Column("target", String(255), primary_key=True),
    Column("environment", String(64), primary_key=True),
    Column("backbone", String(64), primary_key=True),
    Column("space", String(64), primary_key=True, comment="hash of depths and ratios"),
    Column("model", Text, nullable=False, comment="JSON"),
    Column("created", DateTime, nullable=False, comment="UTC"),
)

workers = Table(
    "sparsevit_workers",
    metadata,
    Column("worker", String(255), primary_key=True, comment="host:process:namespace:start"),
    Column("study", String(255), nullable=False, index=True),
    Column("beat", Integer, nullable=False, comment="counts up for as long as the worker lives"),
    Column("stop", Boolean, nullable=False, comment="asked to stop after the trial it is at"),
    Column("started", DateTime, nullable=False, comment="UTC"),
    Column("seen", DateTime, nullable=False, comment="UTC of the last beat, for people alone"),
)
