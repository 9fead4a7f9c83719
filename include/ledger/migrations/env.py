"""What Alembic runs: the migrations, within the transaction that ``include.ledger.database`` has begun, under the lock that it holds."""

from alembic import context

from include.ledger.database import VERSION_TABLE
from include.ledger.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE)
context.run_migrations()
