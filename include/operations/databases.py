"""Which databases a backup holds, what of them, and how an empty one is told from one that is in use."""

from dataclasses import dataclass, field

from sqlalchemy import Connection, Table, inspect, select, text

from include import ledger
from include.ledger.database import VERSION_TABLE
from include.ledger.schema import METADATA
from include.operations import rows
from include.operations.versions import installed
from include.settings import Settings

# MLflow's users and their rights are made from the settings wherever it starts; their passwords are nothing for an archive.
MLFLOW_USERS = {"users", "roles", "role_permissions", "user_role_assignments"}
MLFLOW_PASSING = {"scheduler_leases", "job_locks"}  # who of its servers does what at this moment
FEAST_BOOKS = {"airloop_schema", "feast_metadata", "projects"}


@dataclass(frozen=True)
class Database:
    """One of the databases.

    Attributes:
        name: also that of its member in the archive.
        setting: the variable that names it.
        fresh: tables that have rows as soon as they are made, with the most that they have then.
    """

    name: str
    setting: str
    url: str = field(repr=False)
    fresh: dict[str, int] = field(default_factory=dict)

    def wanted(self, table: str) -> bool:
        """Whether the backup holds this table."""
        if self.name == "ledger":
            return table in METADATA.tables
        if self.name == "mlflow":
            return not table.startswith("alembic_") and table not in MLFLOW_USERS | MLFLOW_PASSING and not table.endswith("_permissions")
        return table != "airloop_schema"

    def tables(self, connection: Connection) -> list[Table]:
        return rows.tables(connection, self.wanted)

    def version(self, connection: Connection) -> str:
        """Of its tables; "" where there are none."""
        if self.name == "feast":
            return installed("feast") if inspect(connection).has_table("feature_views") else ""
        table = VERSION_TABLE if self.name == "ledger" else "alembic_version"
        return str(connection.execute(text(f"SELECT version_num FROM {table}")).scalar() or "") if inspect(connection).has_table(table) else ""

    def in_use(self, connection: Connection) -> list[str]:
        """What stands in it that a fresh one has not: table and number of rows, in words."""
        found = []
        for table in self.tables(connection):
            more = len(connection.execute(select(1).select_from(table).limit(self.fresh.get(table.name, 0) + 1)).all())
            if more > self.fresh.get(table.name, 0):
                found.append(table.name)
        return found


def databases(settings: Settings) -> list[Database]:
    """In the order in which they are saved: the ledger first.

    What it says of the others was then true before they were read, as it is for a run that is killed between doing something and writing it down; and
    that every stage knows how to take up.
    """
    return [
        Database("ledger", "AIRLOOP_LEDGER_URL", settings.ledger, {"installation": 1}),
        Database("feast", "AIRLOOP_FEAST_REGISTRY_URL", settings.feast_registry, dict.fromkeys(FEAST_BOOKS, 100)),
        Database("mlflow", "AIRLOOP_MLFLOW_DATABASE_URL", settings.mlflow_database, {"experiments": 1, "workspaces": 1}),
    ]


def newest_ledger() -> str:
    """The version of the ledger's tables that this code makes."""
    from include.ledger.database import HEAD

    return HEAD


def prepare(database: Database, settings: Settings, version_of_archive: str) -> None:
    """Make the tables of an empty database; the ledger's as the archive has them, since its rows are of that time."""
    if database.name == "ledger":
        ledger.migrate(database.url, to=version_of_archive)
        return
    from include.stack.migrations import migrate, migrations

    migrate(settings, which=lambda of: [one for one in migrations(of) if one.name == database.name])
