"""The ledger: accuracies, measured latencies, latency models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "sparsevit_accuracies",
        sa.Column("evaluator", sa.String(64), primary_key=True, comment="hash of what accuracies depend on"),
        sa.Column("images", sa.Integer, primary_key=True, autoincrement=False, comment="the first so many; 0 for all"),
        sa.Column("kept", sa.String(255), primary_key=True, comment="image size, and windows that layers keep"),
        sa.Column("sparsity", sa.Text, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False, comment="JSON object of fractions"),
        sa.Column("seconds", sa.Float, nullable=False, comment="that the evaluation took"),
        sa.Column("created", sa.DateTime, nullable=False, comment="UTC"),
    )
    op.create_table(
        "sparsevit_latencies",
        sa.Column("target", sa.String(255), primary_key=True),
        sa.Column("environment", sa.String(64), primary_key=True, comment="hash of device, driver and versions"),
        sa.Column("backbone", sa.String(64), primary_key=True, comment="hash of its layers and shapes"),
        sa.Column("kept", sa.String(255), primary_key=True),
        sa.Column("sparsity", sa.Text, nullable=False),
        sa.Column("median_ms", sa.Float, nullable=False),
        sa.Column("low_ms", sa.Float, nullable=False),
        sa.Column("high_ms", sa.Float, nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False, comment="UTC"),
    )
    op.create_table(
        "sparsevit_latency_models",
        sa.Column("target", sa.String(255), primary_key=True),
        sa.Column("environment", sa.String(64), primary_key=True),
        sa.Column("backbone", sa.String(64), primary_key=True),
        sa.Column("space", sa.String(64), primary_key=True, comment="hash of depths and ratios"),
        sa.Column("model", sa.Text, nullable=False, comment="JSON"),
        sa.Column("created", sa.DateTime, nullable=False, comment="UTC"),
    )


def downgrade() -> None:
    for name in ("sparsevit_latency_models", "sparsevit_latencies", "sparsevit_accuracies"):
        op.drop_table(name)
