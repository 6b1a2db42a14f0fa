"""Run by Alembic. The caller hands over an open connection, and commits."""

from __future__ import annotations

from alembic import context

from sparsevit.search.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # Optuna's tables live in the same database and are none of our business.
    include_name=lambda name, kind, _: kind != "table" or str(name).startswith("sparsevit_"),
)
with context.begin_transaction():
    context.run_migrations()
