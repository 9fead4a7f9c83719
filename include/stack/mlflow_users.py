"""MLflow's own users, in MLflow's own database: who the settings say, with the passwords that they say. No account has a default password.

MLflow makes its admin at its first start only. Here each account follows its secret: `airloop migrate` and every start of the server bring them up, under
the lock that migrations have. People get accounts from the admin (docs/runbooks/access.md).

| user | may |
|---|---|
| ``admin`` | everything, accounts too; for people in need, not for programs |
| ``mlflow_username`` | write every experiment and registered model: tasks and training steps |
| ``reader`` | read: serving, which the network reaches |
"""

from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from include.settings import Settings

ADMIN, READER = "admin", "reader"
WRITABLE = ("experiment", "registered_model")  # all of a kind: what was made before there were users is nobody's own
APP = "basic-auth"


@dataclass(frozen=True)
class User:
    """``password`` is not shown."""

    name: str
    password: str
    is_admin: bool = False
    writes: bool = False

    def __repr__(self) -> str:
        return f"User({self.name!r})"


def users(settings: Settings) -> list[User]:
    """The accounts that the settings name; none where MLflow asks nobody who he is."""
    if settings.mlflow_admin_password is None:
        return []
    found = [User(ADMIN, settings.mlflow_admin_password.get_secret_value(), is_admin=True)]
    if settings.mlflow_username and settings.mlflow_password and settings.mlflow_username != ADMIN:
        found.append(User(settings.mlflow_username, settings.mlflow_password.get_secret_value(), writes=True))
    if settings.mlflow_reader_password:
        found.append(User(READER, settings.mlflow_reader_password.get_secret_value()))
    return found


def in_order(engine: Engine, wanted: list[User]) -> bool:
    """Whether each account is there with this very password and these rights; cheap, without MLflow."""
    from werkzeug.security import check_password_hash

    if not inspect(engine).has_table("role_permissions"):
        return False
    with engine.connect() as connection:
        for user in wanted:
            row = connection.execute(text("SELECT id, password_hash, is_admin FROM users WHERE username = :name"), {"name": user.name}).one_or_none()
            if row is None or bool(row.is_admin) != user.is_admin or not check_password_hash(row.password_hash, user.password):
                return False
            if user.writes and not set(WRITABLE) <= _managed(connection, row.id):
                return False
    return True


def _managed(connection, user: int) -> set[str]:
    """Kinds of which the user may do everything with every one."""
    granted = (
        "SELECT p.resource_type FROM role_permissions p JOIN user_role_assignments a ON a.role_id = p.role_id "
        "WHERE a.user_id = :user AND p.resource_pattern = '*' AND p.permission = 'MANAGE'"
    )
    return set(connection.execute(text(granted), {"user": user}).scalars())


def make(url: str, wanted: list[User]) -> None:
    """Make MLflow's tables of users, and each account as it should be. Doing it again changes nothing."""
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
    """What MLflow's server needs in its environment to ask everybody who he is; writes its file, which holds the database's URL, for its owner alone."""
    if not users(settings):
        return {}
    file = settings.home / "mlflow" / "basic_auth.ini"
    flask = settings.mlflow_flask_secret_key
    assert flask is not None  # the settings see to it that it comes with the admin's password
    # Without a password for the admin: there is one already, and the server does not need to know it. To check a password takes a twentieth of a second
    # of CPU, and serving asks every second: one that was right is believed for half a minute.
    options = {"default_permission": "READ", "database_uri": settings.mlflow_database, "admin_username": ADMIN, "auth_cache_ttl_seconds": "30"}
    _write(file, options)
    return {"MLFLOW_AUTH_CONFIG_PATH": str(file), "MLFLOW_FLASK_SERVER_SECRET_KEY": flask.get_secret_value()}


def _write(file: Path, options: dict[str, str]) -> None:
    config = ConfigParser(interpolation=None)
    config["mlflow"] = {name: value.replace("%", "%%") for name, value in options.items()}  # its reader takes % for the begin of a variable
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.new")
    draft.touch(mode=0o600)
    with draft.open("w") as text_file:
        config.write(text_file)
    draft.replace(file)
