"""Create the four Postgres databases and their four users from the URLs in the settings.

Each user has rights on its own database only. Safe to repeat: existing objects stay, and a changed
password is set again. Passwords are sent to the server as SCRAM verifiers, so that its log contains
none.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any

from sqlalchemy import URL, make_url

from include.settings import Settings

# In the order of the settings. Serving has its own read-only access to Feast's registry.
OWNERS = ("airflow_database_url", "mlflow_database_url", "feast_registry_url", "ledger_url")
READER = "feast_readonly_url"


class DatabasesError(Exception):
    """Raised when the databases cannot be created.

    The message names the setting and the fix. It contains no password.
    """


def make_databases(settings: Settings, say: Callable[[str], None] = lambda line: None) -> None:
    """Create all roles and databases of the settings' URLs, as ``database_admin_url``'s superuser.

    Args:
        say: Called for each role and database, with whether it was created or existed.

    Raises:
        DatabasesError: A URL is missing or not a Postgres URL, two stores share a user or a
            database, or the server refuses.
    """
    import psycopg2

    if settings.database_admin_url is None:
        raise DatabasesError(
            "AIRLOOP_DATABASE_ADMIN_URL is not set: the URL of a Postgres superuser,"
            " postgresql://postgres:...@host:5432/postgres"
        )
    admin = make_url(settings.database_admin_url.get_secret_value())
    wanted = {name: _url(settings, name) for name in OWNERS}
    for what in ("username", "database"):
        values = [getattr(url, what) for url in wanted.values()]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise DatabasesError(
                f"two stores have the same {what} '{twice[0]}': give each its own, so that none can read or break"
                " another's"
            )
    try:
        with closing(_connect(admin)) as connection, connection.cursor() as server:
            for url in wanted.values():
                say(f"user {url.username}: {_role(server, url)}")
                say(f"database {url.database}: {_database(server, url)}")
        if settings.feast_readonly_url is not None:
            reader = _url(settings, READER)
            owner = wanted["feast_registry_url"]
            if reader.username == owner.username or reader.database != owner.database:
                raise DatabasesError(
                    "AIRLOOP_FEAST_READONLY_URL must name Feast's registry's database, and another user than its owner"
                )
            with closing(_connect(admin.set(database=reader.database))) as connection, connection.cursor() as server:
                say(f"user {reader.username}: {_role(server, reader)}")
                _let_read(server, reader, owner)
    except psycopg2.Error as error:
        raise DatabasesError(
            f"Postgres at {admin.host}:{admin.port or 5432}, as user {admin.username}: {str(error).strip()}"
        ) from None


def _url(settings: Settings, name: str) -> URL:
    value = getattr(settings, name)
    if value is None:
        raise DatabasesError(f"AIRLOOP_{name.upper()} is not set: postgresql://user:password@host:5432/database")
    url = make_url(value.get_secret_value())
    if url.get_backend_name() not in ("postgresql", "postgres") or not (url.username and url.password and url.database):
        raise DatabasesError(f"AIRLOOP_{name.upper()} is not written postgresql://user:password@host:5432/database")
    return url


def _connect(url: URL) -> Any:
    import psycopg2

    connection = psycopg2.connect(
        host=url.host,
        port=url.port or 5432,
        user=url.username,
        password=url.password,
        dbname=url.database,
        connect_timeout=10,
    )
    # CREATE DATABASE cannot run in a transaction.
    connection.autocommit = True
    return connection


def _role(server: Any, url: URL) -> str:
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [url.username])
    there = server.fetchone() is not None
    verifier = encrypt_password(url.password, url.username, server.connection, "scram-sha-256")
    made = "ALTER" if there else "CREATE"
    rights = sql.SQL(f"{made} ROLE {{}} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {{}}")
    server.execute(rights.format(sql.Identifier(url.username), sql.Literal(verifier)))
    return "was there" if there else "made"


def _database(server: Any, url: URL) -> str:
    from psycopg2 import sql

    name, owner = sql.Identifier(url.database), sql.Identifier(url.username)
    server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [url.database])
    there = server.fetchone() is not None
    if not there:
        server.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        # The admin of a managed server is not a superuser. It can only assign roles that it is a
        # member of.
        if not server.fetchone()[0]:
            server.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(owner))
        server.execute(sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(name, owner))
    # By default all users may connect.
    server.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    return "was there" if there else "made"


def _let_read(server: Any, reader: URL, owner: URL) -> None:
    """Grant read access to all tables, also to those that the owner creates later."""
    from psycopg2 import sql

    names = {
        "database": sql.Identifier(reader.database),
        "reader": sql.Identifier(reader.username),
        "owner": sql.Identifier(owner.username),
    }
    for statement in (
        "GRANT CONNECT ON DATABASE {database} TO {reader}",
        "GRANT USAGE ON SCHEMA public TO {reader}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {reader}",
    ):
        server.execute(sql.SQL(statement).format(**names))
