"""The first six tables. Ledgers from before versions existed have them already, and keep them."""

from alembic import op
from sqlalchemy import JSON, Column, String, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "ingested_files",
        Column("project", String(40), primary_key=True),
        Column("source", String(40), primary_key=True),
        Column("sha256", String(64), primary_key=True),
        Column("file", String(400), nullable=False),
        Column("status", String(20), nullable=False),
        Column("counts", JSON, nullable=False),
        Column("reasons", JSON, nullable=False),
        Column("cutoff", String(20), nullable=False),
        Column("recorded_at", String(20), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "stages",
        Column("project", String(40), primary_key=True),
        Column("stage", String(40), primary_key=True),
        Column("cutoff", String(20), primary_key=True),
        Column("dag_run", String(250), nullable=False),
        Column("summary", JSON, nullable=False),
        Column("recorded_at", String(20), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "retrain_requests",
        Column("id", String(16), primary_key=True),
        Column("project", String(40), nullable=False),
        Column("cutoff", String(20), nullable=False),
        Column("reason", String(40), nullable=False),
        Column("asked_by", String(100), nullable=False),
        Column("episode", String(16)),
        Column("parameters", JSON, nullable=False),
        Column("state", String(20), nullable=False),
        Column("dag_run", String(250)),
        Column("outcome", JSON, nullable=False),
        Column("recorded_at", String(20), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "drift_episodes",
        Column("id", String(16), primary_key=True),
        Column("project", String(40), nullable=False),
        Column("opened", String(20), nullable=False),
        Column("closed", String(20)),
        Column("evidence", JSON, nullable=False),
        if_not_exists=True,
    )
    still_open = text("closed IS NULL")
    op.create_index(
        "one_open_episode",
        "drift_episodes",
        ["project"],
        unique=True,
        sqlite_where=still_open,
        postgresql_where=still_open,
        if_not_exists=True,
    )
    op.create_table(
        "decisions",
        Column("project", String(40), primary_key=True),
        Column("what", String(40), primary_key=True),
        Column("subject", String(100), primary_key=True),
        Column("verdict", String(40), nullable=False),
        Column("reasons", JSON, nullable=False),
        Column("cutoff", String(20), nullable=False),
        Column("recorded_at", String(20), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "clocks",
        Column("project", String(40), primary_key=True),
        Column("now", String(20), nullable=False),
        if_not_exists=True,
    )
