"""Change Airflow's accounts: `airloop users`.

A separate process with Airflow's environment does the work (``include.dag_kit.users``).
"""

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
# Roles that may see the list of plugins, and so our pages. FAB manages the remaining rights of the
# roles.
SEES_PLUGINS = ("Viewer", "User")


class UsersError(Exception):
    """Raised when the accounts cannot be changed as requested.

    The message says why. It contains no password.
    """


def sync(settings: Settings) -> str:
    """Update roles and the account admin from the settings. Return what was done.

    Safe to repeat.

    Raises:
        UsersError: The accounts cannot be changed.
    """
    return _run(settings, "sync")


def add(settings: Settings, name: str, role: str, email: str | None = None) -> str:
    """Create an account, or change the role of an existing one. Return its new password.

    Raises:
        UsersError: The role does not exist, or the account is the admin's.
    """
    password = secrets.token_urlsafe(15)
    _run(settings, "add", name, role, email or f"{name}@localhost", given=f"{password}\n")
    return password


def remove(settings: Settings, name: str) -> None:
    """Delete an account.

    Raises:
        UsersError: The account does not exist, or it is the admin's.
    """
    _run(settings, "remove", name)


def listed(settings: Settings) -> list[dict[str, Any]]:
    """Return all accounts: ``name``, ``roles``, ``email``, ``active``."""
    accounts: list[dict[str, Any]] = json.loads(_run(settings, "list"))
    return accounts


def in_order(engine: Engine, settings: Settings) -> bool:
    """Return whether the admin has the settings' password and the roles have their rights.

    This reads Airflow's database. It is fast, because it works without Airflow.
    """
    from werkzeug.security import check_password_hash

    password = settings.airflow_admin_password
    if password is None or not inspect(engine).has_table("ab_user"):
        return False
    with engine.connect() as connection:
        stored = connection.execute(
            text("SELECT password FROM ab_user WHERE username = :name AND active"), {"name": ADMIN}
        ).scalar()
        rights = (
            "SELECT r.name FROM ab_role r JOIN ab_permission_view_role pr ON pr.role_id = r.id JOIN ab_permission_view"
            " pv ON pv.id = pr.permission_view_id JOIN ab_permission p ON p.id = pv.permission_id JOIN ab_view_menu v"
            " ON v.id = pv.view_menu_id WHERE p.name = 'can_read' AND v.name = 'Plugins'"
        )
        sees = set(connection.execute(text(rights)).scalars())
    return bool(stored) and check_password_hash(stored, password.get_secret_value()) and set(SEES_PLUGINS) <= sees


def command(settings: Settings, *arguments: str) -> Command:
    """Return the command of the process that changes accounts.

    Of Airflow's processes, only this one gets the admin's password.
    """
    password = settings.airflow_admin_password
    credentials = {"AIRLOOP_AIRFLOW_ADMIN_PASSWORD": password.get_secret_value()} if password else {}
    return Command("users", [sys.executable, "-m", MODULE, *arguments], airflow_environment(settings) | credentials)


def _run(settings: Settings, *arguments: str, given: str = "") -> str:
    if settings.users != "fab":
        raise UsersError(
            "Airflow has one developer's account here (AIRLOOP_AUTH_MANAGER is simple): `airloop status` shows its"
            " password. For accounts with roles: AIRLOOP_AUTH_MANAGER=fab and AIRLOOP_AIRFLOW_ADMIN_PASSWORD"
        )
    process = command(settings, *arguments)
    done = subprocess.run(
        process.arguments,
        env=process.environment,
        cwd=REPOSITORY,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UsersError("\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-15:]))
    # Airflow's own output precedes the last line.
    return "".join(done.stdout.splitlines()[-1:])
