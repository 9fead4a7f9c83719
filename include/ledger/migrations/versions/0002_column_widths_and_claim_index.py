"""Widen text columns, and enforce one request a run with an index.

Postgres enforces the width of a column, SQLite does not. Users' texts and run names must fit. On
SQLite two claims could not run concurrently. On Postgres they can.
"""

from alembic import op
from sqlalchemy import String, Text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for table, column, kind in (
        ("ingested_files", "file", Text()),
        ("retrain_requests", "reason", Text()),
        ("retrain_requests", "asked_by", String(250)),
        ("decisions", "subject", Text()),
    ):
        with op.batch_alter_table(table) as batch:  # SQLite alters a column by copying the table
            batch.alter_column(column, type_=kind, existing_nullable=False)
    op.create_index("one_request_a_run", "retrain_requests", ["project", "dag_run"], unique=True)
