"""`airloop users`: Airflow's accounts, changed by a process of its own that has Airflow's environment (``include.dag_kit.users``)."""

import json
import secrets
import subprocess
import sys
from typing import Any

from sqlalchemy import Engine, inspect, text

from include.settings import REPOSITORY, Settings
from include.stack.environment import airflow_environment
from include.stack.processes import Command

MODULE = "include.dag_kit.users"
ADMIN = "admin"
# Who may see the list of plugins, and so the pages of ours; the rest of a role's rights FAB itself keeps.
SEES_PLUGINS = ("Viewer", "User")


class UsersError(Exception):
    """The accounts cannot be changed so; the message says why. It holds no password."""


def sync(settings: Settings) -> str:
    """Make roles and the account admin what the settings say; gives what was done. However often it is called.

    Raises:
        UsersError.
    """
    return _run(settings, "sync")


def add(settings: Settings, name: str, role: str, email: str | None = None) -> str:
    """Make an account, or change the role of the one that is there; gives its new password.

    Raises:
        UsersError: no such role, or the account is the admin's.
    """
    password = secrets.token_urlsafe(15)
    _run(settings, "add", name, role, email or f"{name}@localhost", given=f"{password}\n")
    return password


def remove(settings: Settings, name: str) -> None:
    """Take an account away.

    Raises:
        UsersError: there is none, or it is the admin's.
    """
    _run(settings, "remove", name)


def listed(settings: Settings) -> list[dict[str, Any]]:
    """Every account: ``name``, ``roles``, ``email``, ``active``."""
    return json.loads(_run(settings, "list"))


def in_order(engine: Engine, settings: Settings) -> bool:
    """Whether Airflow's database has the account admin with the settings' password, and the roles their rights; cheap, without Airflow."""
    from werkzeug.security import check_password_hash

    password = settings.airflow_admin_password
    if password is None or not inspect(engine).has_table("ab_user"):
        return False
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT password FROM ab_user WHERE username = :name AND active"), {"name": ADMIN}).scalar()
        rights = (
            "SELECT r.name FROM ab_role r JOIN ab_permission_view_role pr ON pr.role_id = r.id JOIN ab_permission_view pv ON pv.id = pr.permission_view_id "
            "JOIN ab_permission p ON p.id = pv.permission_id JOIN ab_view_menu v ON v.id = pv.view_menu_id WHERE p.name = 'can_read' AND v.name = 'Plugins'"
        )
        sees = set(connection.execute(text(rights)).scalars())
    return bool(stored) and check_password_hash(stored, password.get_secret_value()) and set(SEES_PLUGINS) <= sees


def command(settings: Settings, *arguments: str) -> Command:
    """The process that does it. It alone of Airflow's is told the admin's password."""
    password = settings.airflow_admin_password
    told = {"AIRLOOP_AIRFLOW_ADMIN_PASSWORD": password.get_secret_value()} if password else {}
    return Command("users", [sys.executable, "-m", MODULE, *arguments], airflow_environment(settings) | told)


def _run(settings: Settings, *arguments: str, given: str = "") -> str:
    if settings.users != "fab":
        raise UsersError(
            "Airflow has one developer's account here (AIRLOOP_AUTH_MANAGER is simple): `airloop status` shows its password. For accounts with roles: "
            "AIRLOOP_AUTH_MANAGER=fab and AIRLOOP_AIRFLOW_ADMIN_PASSWORD"
        )
    process = command(settings, *arguments)
    done = subprocess.run(process.arguments, env=process.environment, cwd=REPOSITORY, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsersError("\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-15:]))
    return "".join(done.stdout.splitlines()[-1:])  # before it stands what Airflow has to say
