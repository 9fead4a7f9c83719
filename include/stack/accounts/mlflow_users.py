"""Manage MLflow's own users in MLflow's database, with the passwords of the settings.

No account has a default password. MLflow creates its admin only at its first start. Here each
account follows its secret: `airloop migrate` and every start of the server update the accounts,
under the lock of the migrations. People get accounts from the admin (docs/runbooks/access.md).

| user | may |
|---|---|
| ``admin`` | everything, including accounts; for people in emergencies, not for programs |
| ``mlflow_username`` | write every experiment and registered model: tasks and training steps |
| ``reader`` | read: serving, which is reachable from the network |
"""

from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from include.settings import Settings

ADMIN, READER = "admin", "reader"
# All objects of a kind, because objects from before there were users do not have an owner.
WRITABLE = ("experiment", "registered_model")
APP = "basic-auth"


@dataclass(frozen=True)
class User:
    """An account. Its ``password`` is not shown."""

    name: str
    password: str
    is_admin: bool = False
    writes: bool = False

    def __repr__(self) -> str:
        return f"User({self.name!r})"


def users(settings: Settings) -> list[User]:
    """Return the accounts that the settings name. Empty if MLflow does not authenticate users."""
    if settings.mlflow_admin_password is None:
        return []
    accounts = [User(ADMIN, settings.mlflow_admin_password.get_secret_value(), is_admin=True)]
    if settings.mlflow_username and settings.mlflow_password and settings.mlflow_username != ADMIN:
        accounts.append(User(settings.mlflow_username, settings.mlflow_password.get_secret_value(), writes=True))
    if settings.mlflow_reader_password:
        accounts.append(User(READER, settings.mlflow_reader_password.get_secret_value()))
    return accounts


def in_order(engine: Engine, wanted: list[User]) -> bool:
    """Return whether each account exists with this password and these rights.

    Fast, without MLflow.
    """
    from werkzeug.security import check_password_hash

    if not inspect(engine).has_table("role_permissions"):
        return False
    with engine.connect() as connection:
        for user in wanted:
            row = connection.execute(
                text("SELECT id, password_hash, is_admin FROM users WHERE username = :name"), {"name": user.name}
            ).one_or_none()
            if (
                row is None
                or bool(row.is_admin) != user.is_admin
                or not check_password_hash(row.password_hash, user.password)
            ):
                return False
            if user.writes and not set(WRITABLE) <= _managed(connection, row.id):
                return False
    return True


def _managed(connection: Connection, user: int) -> set[str]:
    """Return the kinds of objects that the user may manage without restriction."""
    granted = (
        "SELECT p.resource_type FROM role_permissions p JOIN user_role_assignments a ON a.role_id = p.role_id "
        "WHERE a.user_id = :user AND p.resource_pattern = '*' AND p.permission = 'MANAGE'"
    )
    return set(connection.execute(text(granted), {"user": user}).scalars())


def make(url: str, wanted: list[User]) -> None:
    """Create MLflow's user tables and update each account. Running it again changes nothing."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(url)
    try:
        for user in wanted:
            if not store.has_user(user.name):
                store.create_user(user.name, user.password, is_admin=user.is_admin)
            elif not store.authenticate_user(user.name, user.password):
                store.update_user(user.name, password=user.password)
            if store.get_user(user.name).is_admin != user.is_admin:
                store.update_user(user.name, is_admin=user.is_admin)
            for kind in WRITABLE if user.writes else ():
                store.grant_user_permission(user.name, kind, "*", "MANAGE")
    finally:
        store.engine.dispose()


def configuration(settings: Settings) -> dict[str, str]:
    """Return the environment with which MLflow's server authenticates all users.

    This writes the server's configuration file, which contains the database's URL and is readable
    only by its owner.
    """
    if not users(settings):
        return {}
    file = settings.home / "mlflow" / "basic_auth.ini"
    flask = settings.mlflow_flask_secret_key
    # The settings require it together with the admin's password.
    assert flask is not None
    # The admin's password is omitted: the account exists already, and the server does not need it.
    # Checking a password takes 50 ms of CPU, and serving sends a request every second. Therefore a
    # valid password is cached for half a minute.
    options = {
        "default_permission": "READ",
        "database_uri": settings.mlflow_database,
        "admin_username": ADMIN,
        "auth_cache_ttl_seconds": "30",
    }
    _write(file, options)
    return {"MLFLOW_AUTH_CONFIG_PATH": str(file), "MLFLOW_FLASK_SERVER_SECRET_KEY": flask.get_secret_value()}


def _write(file: Path, options: dict[str, str]) -> None:
    config = ConfigParser(interpolation=None)
    # The reader of the file interprets % as the start of a variable.
    config["mlflow"] = {name: value.replace("%", "%%") for name, value in options.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.new")
    draft.touch(mode=0o600)
    with draft.open("w") as text_file:
        config.write(text_file)
    draft.replace(file)
