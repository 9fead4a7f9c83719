"""Add deadlines and attempts of requests, cutoffs of runs, and notices to operators.

Existing waiting requests do not have a deadline yet. The first sweep of ``monitor`` treats them as
overdue.
"""

from alembic import op
from sqlalchemy import Column, Integer, String, Text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("retrain_requests", Column("attempts", Integer, nullable=False, server_default="0"))
    for name in ("not_before", "deadline", "held_since"):
        op.add_column("retrain_requests", Column(name, String(20)))
    for name in ("last_run", "deploy_run"):
        op.add_column("retrain_requests", Column(name, String(250)))
    op.create_table(
        "run_cutoffs",
        Column("project", String(40), primary_key=True),
        Column("dag_run", Text, primary_key=True),
        Column("cutoff", String(20), nullable=False),
    )
    op.create_table(
        "notices",
        Column("project", String(40), primary_key=True),
        Column("subject", Text, primary_key=True),
        Column("text", Text, nullable=False),
        Column("recorded_at", String(20), nullable=False),
        Column("told_at", String(20)),
        Column("attempts", Integer, nullable=False),
    )
