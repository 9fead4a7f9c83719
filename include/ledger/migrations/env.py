"""Run the migrations for Alembic.

They run in the transaction that ``include.ledger.database`` has begun, under its lock.
"""

from alembic import context

from include.ledger.database import VERSION_TABLE
from include.ledger.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
context.run_migrations()
