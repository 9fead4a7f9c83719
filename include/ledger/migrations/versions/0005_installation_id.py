"""Store the installation's id in the ledger.

With it, commands detect that a registry or a service belongs to another installation.
"""

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
