"""The table of freezes: project, user, reason and start."""

from alembic import op
from sqlalchemy import Column, String, Text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "freezes",
        Column("project", String(40), primary_key=True),
        Column("by", Text, nullable=False),
        Column("why", Text, nullable=False),
        Column("since", String(20), nullable=False),
    )
