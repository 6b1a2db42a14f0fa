"""Alembic's history of the ledger's tables. Optuna keeps its own, in another version table of the same database."""
