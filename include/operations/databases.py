"""The databases and tables of a backup, and whether a database is in use."""

from dataclasses import dataclass, field

from sqlalchemy import Connection, Table, inspect, select, text

from include import ledger
from include.ledger.database import VERSION_TABLE
from include.ledger.schema import METADATA
from include.operations import rows
from include.operations.versions import installed
from include.settings import Settings

# MLflow's users and rights are created from the settings at every start. Their passwords do not
# belong in an archive.
MLFLOW_USERS = {"users", "roles", "role_permissions", "user_role_assignments"}
# The current work of MLflow's servers.
MLFLOW_PASSING = {"scheduler_leases", "job_locks"}
FEAST_BOOKS = {"airloop_schema", "feast_metadata", "projects"}


@dataclass(frozen=True)
class Database:
    """One of the databases.

    Attributes:
        name: Also the name of its member in the archive.
        setting: The variable that contains its URL.
        fresh: Tables that have rows from the start, with their maximum initial number.
    """

    name: str
    setting: str
    url: str = field(repr=False)
    fresh: dict[str, int] = field(default_factory=dict)

    def wanted(self, table: str) -> bool:
        """Return whether the backup contains this table."""
        if self.name == "ledger":
            return table in METADATA.tables
        if self.name == "mlflow":
            return (
                not table.startswith("alembic_")
                and table not in MLFLOW_USERS | MLFLOW_PASSING
                and not table.endswith("_permissions")
            )
        return table != "airloop_schema"

    def tables(self, connection: Connection) -> list[Table]:
        return rows.tables(connection, self.wanted)

    def version(self, connection: Connection) -> str:
        """Return the version of the tables, or "" if there are none."""
        if self.name == "feast":
            return installed("feast") if inspect(connection).has_table("feature_views") else ""
        table = VERSION_TABLE if self.name == "ledger" else "alembic_version"
        return (
            str(connection.execute(text(f"SELECT version_num FROM {table}")).scalar() or "")
            if inspect(connection).has_table(table)
            else ""
        )

    def in_use(self, connection: Connection) -> list[str]:
        """Return the names of the tables that have more rows than in a new database."""
        names = []
        for table in self.tables(connection):
            more = len(connection.execute(select(1).select_from(table).limit(self.fresh.get(table.name, 0) + 1)).all())
            if more > self.fresh.get(table.name, 0):
                names.append(table.name)
        return names


def databases(settings: Settings) -> list[Database]:
    """Return the databases in the order of the backup, the ledger first.

    The ledger's statements about the other databases were true before those were read. The
    difference looks like a run that is killed between its work and its record. Every stage recovers
    from that.
    """
    return [
        Database("ledger", "AIRLOOP_LEDGER_URL", settings.ledger, {"installation": 1}),
        Database("feast", "AIRLOOP_FEAST_REGISTRY_URL", settings.feast_registry, dict.fromkeys(FEAST_BOOKS, 100)),
        Database(
            "mlflow", "AIRLOOP_MLFLOW_DATABASE_URL", settings.mlflow_database, {"experiments": 1, "workspaces": 1}
        ),
    ]


def newest_ledger() -> str:
    """Return the version of the ledger's tables that this code creates."""
    from include.ledger.database import HEAD

    return HEAD


def prepare(database: Database, settings: Settings, version_of_archive: str) -> None:
    """Create the tables of an empty database.

    The ledger's tables get the version of the archive, because its rows have that version.
    """
    if database.name == "ledger":
        ledger.migrate(database.url, to=version_of_archive)
        return
    from include.stack.stores.migrations import migrate, migrations

    migrate(settings, which=lambda of: [one for one in migrations(of) if one.name == database.name])


def version_of_new_tables(database: Database, settings: Settings) -> str:
    """Return the version of the tables that ``prepare`` would create. Creates nothing."""
    from include.stack.stores.migrations import migrations

    return next(one.wanted for one in migrations(settings) if one.name == database.name)
