"""The ledger knows its installation's id, by which commands see that a registry or a service belongs to another one."""

from alembic import op
from sqlalchemy import Column, String

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "installation",
        Column("key", String(10), primary_key=True),
        Column("id", String(36), nullable=False),
        Column("recorded_at", String(20), nullable=False),
    )
