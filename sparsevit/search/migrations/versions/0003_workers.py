"""The table of workers: who is at work on which study, and whether they still give a sign."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "sparsevit_workers",
        sa.Column("worker", sa.String(255), primary_key=True, comment="host:process:namespace:start"),
        sa.Column("study", sa.String(255), nullable=False, index=True),
        sa.Column("beat", sa.Integer, nullable=False, comment="counts up for as long as the worker lives"),
        sa.Column("stop", sa.Boolean, nullable=False, comment="asked to stop after the trial it is at"),
        sa.Column("started", sa.DateTime, nullable=False, comment="UTC"),
        sa.Column("seen", sa.DateTime, nullable=False, comment="UTC of the last beat, for people alone"),
    )


def downgrade() -> None:
    op.drop_table("sparsevit_workers")
