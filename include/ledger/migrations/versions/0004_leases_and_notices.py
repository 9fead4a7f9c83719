"""Each request that waits has a deadline and counts its attempts; each run keeps its cutoff; what people must be told waits in a table until it is told.

Requests of before that wait have no deadline yet: the first sweep of ``monitor`` takes that for one that has passed.
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
