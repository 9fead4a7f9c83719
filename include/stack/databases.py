"""The four databases on Postgres and their four users: made from the URLs in the settings, each user with rights on its own database alone.

Safe to repeat: what is there stays, a password that has changed is set anew. Passwords go to the server as SCRAM verifiers, so that none stands in its log.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any

from sqlalchemy import URL, make_url

from include.settings import Settings

# In the order of the settings; serving's own way into Feast's registry is a reader's.
OWNERS = ("airflow_database_url", "mlflow_database_url", "feast_registry_url", "ledger_url")
READER = "feast_reader_url"


class DatabasesError(Exception):
    """The databases cannot be made; the message says which setting and what to do. It holds no password."""


def make_databases(settings: Settings, say: Callable[[str], None] = lambda line: None) -> None:
    """Make every role and database that the settings' URLs name, as the superuser of ``database_admin_url``.

    Args:
        say: told of each role and database, whether it was made or was there.

    Raises:
        DatabasesError: a URL is missing or is not Postgres's, two stores share a user or a database, or the server refuses.
    """
    import psycopg2

    if settings.database_admin_url is None:
        raise DatabasesError("AIRLOOP_DATABASE_ADMIN_URL is not set: the URL of a Postgres superuser, postgresql://postgres:...@host:5432/postgres")
    admin = make_url(settings.database_admin_url.get_secret_value())
    wanted = {name: _url(settings, name) for name in OWNERS}
    for what in ("username", "database"):
        values = [getattr(url, what) for url in wanted.values()]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise DatabasesError(f"two stores have the same {what} '{twice[0]}': give each its own, so that none can read or break another's")
    try:
        with closing(_connect(admin)) as connection, connection.cursor() as server:
            for url in wanted.values():
                say(f"user {url.username}: {_role(server, url)}")
                say(f"database {url.database}: {_database(server, url)}")
        if settings.feast_reader_url is not None:
            reader = _url(settings, READER)
            owner = wanted["feast_registry_url"]
            if reader.username == owner.username or reader.database != owner.database:
                raise DatabasesError("AIRLOOP_FEAST_READER_URL must name Feast's registry's database, and another user than its owner")
            with closing(_connect(admin.set(database=reader.database))) as connection, connection.cursor() as server:
                say(f"user {reader.username}: {_role(server, reader)}")
                _let_read(server, reader, owner)
    except psycopg2.Error as error:
        raise DatabasesError(f"Postgres at {admin.host}:{admin.port or 5432}, as user {admin.username}: {str(error).strip()}") from None


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

    connection = psycopg2.connect(host=url.host, port=url.port or 5432, user=url.username, password=url.password, dbname=url.database, connect_timeout=10)
    connection.autocommit = True  # CREATE DATABASE is not for transactions
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
        if not server.fetchone()[0]:  # a managed server's admin is no superuser, and gives away only what its own roles have
            server.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(owner))
        server.execute(sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(name, owner))
    server.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))  # by default everybody may connect
    return "was there" if there else "made"


def _let_read(server: Any, reader: URL, owner: URL) -> None:
    """All tables of the database, also those that its owner makes later; nothing may be changed."""
    from psycopg2 import sql

    names = {"database": sql.Identifier(reader.database), "reader": sql.Identifier(reader.username), "owner": sql.Identifier(owner.username)}
    for statement in (
        "GRANT CONNECT ON DATABASE {database} TO {reader}",
        "GRANT USAGE ON SCHEMA public TO {reader}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {reader}",
    ):
        server.execute(sql.SQL(statement).format(**names))
