"""Studies in units that are claimed; what a run is in its study, what a snapshot is for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OF_RUNS = (
    ("place", sa.Integer),
    ("round", sa.Integer),
    ("kind", lambda: sa.String(20)),
    ("choices", sa.Text),
)


def upgrade() -> None:
    """Add the table and the columns; what is there stays as it is."""
    for name, kind in _OF_RUNS:
        op.add_column("runs", sa.Column(name, kind()))
    op.add_column(
        "snapshots",
        sa.Column("purpose", sa.String(20), nullable=False, server_default="latest"),
    )
    op.create_table(
        "units",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer(),
            sa.ForeignKey("studies.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("owner", sa.String(400)),
        sa.Column("lease_until", sa.Float()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("stalled", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("runs.id")),
        sa.Column("outcome", sa.Text()),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float()),
        sa.UniqueConstraint("study_id", "place", name="units_by_place"),
    )


def downgrade() -> None:
    """Drop what was added."""
    op.drop_table("units")
    op.drop_column("snapshots", "purpose")
    for name, _ in reversed(_OF_RUNS):
        op.drop_column("runs", name)
