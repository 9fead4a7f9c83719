"""Manage Airflow's users and roles in the database of its FAB auth manager.

Run it as a separate process in Airflow's environment:

    python -m include.dag_kit.users sync                      create the roles, and the account
                                                              admin with the settings' password
    python -m include.dag_kit.users add NAME ROLE EMAIL       read the password from standard input
    python -m include.dag_kit.users remove NAME
    python -m include.dag_kit.users list                      print JSON

``include.stack.accounts.users`` calls it this way. Passwords are never arguments: all users of the
machine could read those.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Airloop's role names, and FAB's. Each role includes the permissions of the role before it.
ROLES = {"viewer": "Viewer", "editor": "User", "operator": "Op", "admin": "Admin"}
ADMIN = "admin"
# The UI builds the plugins' pages from this list. Without it a viewer does not see reports.
COMMON_PERMISSIONS = (("can_read", "Plugins"),)


class UsersError(ValueError):
    """Raised when the users cannot be changed as requested. The message says why."""


def sync(password: str) -> str:
    """Create or repair the roles and the admin's account. Return what was done.

    Safe to call repeatedly and concurrently.

    Args:
        password: Password of the account ``admin``. If the secret has changed, it becomes the new
            password, and the account's sessions end.
    """
    with _manager() as users:
        users.sync_roles()
        for name in ("Viewer", "User"):
            role = users.find_role(name)
            for action, resource in COMMON_PERMISSIONS:
                users.add_permission_to_role(role, users.create_permission(action, resource))
        admin = users.find_user(username=ADMIN)
        if admin is None:
            _add(users, ADMIN, "admin", f"{ADMIN}@localhost", password)
            return "made"
        if not admin.active or users.find_role(ROLES["admin"]) not in admin.roles:
            admin.active, admin.roles = True, [users.find_role(ROLES["admin"])]
            users.update_user(admin)
        if not _is_password(admin, password):
            users.reset_password(admin.id, password)
            return "has a new password"
        return "is as it should be"


def add(name: str, role: str, email: str, password: str) -> None:
    """Create an account, or set the role, address and password of an existing one.

    Raises:
        UsersError: The role does not exist, or it is the admin's account, which the settings
            manage.
    """
    if role not in ROLES:
        raise UsersError(f"there is no role '{role}'; there is {', '.join(ROLES)}")
    if name == ADMIN:
        raise UsersError(
            f"the account {ADMIN} belongs to the setting AIRLOOP_AIRFLOW_ADMIN_PASSWORD; change that and run `airloop"
            " users sync`"
        )
    with _manager() as users:
        account = users.find_user(username=name)
        if account is None:
            _add(users, name, role, email, password)
            return
        account.roles, account.email = [users.find_role(ROLES[role])], email
        users.update_user(account)
        users.reset_password(account.id, password)


def remove(name: str) -> None:
    """Delete an account. Its tokens become invalid.

    Raises:
        UsersError: The account does not exist, or it is the admin's.
    """
    if name == ADMIN:
        raise UsersError(f"the account {ADMIN} belongs to Airloop: the next start creates it again")
    with _manager() as users:
        account = users.find_user(username=name)
        if account is None:
            raise UsersError(f"there is no user '{name}'")
        account.roles.clear()
        if not users.del_register_user(account):
            raise UsersError(f"'{name}' could not be removed; Airflow's own log says why")


def listed() -> list[dict[str, Any]]:
    """Return all accounts: ``name``, ``roles``, ``email``, ``active``.

    Roles have Airloop's names. A site's own roles keep their names.
    """
    words = {theirs: ours for ours, theirs in ROLES.items()}
    with _manager() as users:
        return [
            {
                "name": u.username,
                "roles": [words.get(r.name, r.name) for r in u.roles],
                "email": u.email,
                "active": bool(u.active),
            }
            for u in sorted(users.get_all_users(), key=lambda user: user.username)
        ]


@contextmanager
def _manager() -> Iterator[Any]:
    """Provide FAB's security manager, under Airflow's own lock for migrations.

    A second process waits for the lock and finds the work done.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils.db import DBLocks, create_global_lock
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded
    from airflow.utils.session import create_session

    providers_configuration_loaded(lambda: None)()
    with (
        create_session() as session,
        create_global_lock(session, DBLocks.MIGRATIONS),
        get_application_builder() as builder,
    ):
        yield builder.sm


def _add(users: Any, name: str, role: str, email: str, password: str) -> None:
    if not users.add_user(name, name, "", email, users.find_role(ROLES[role]), password):
        raise UsersError(f"'{name}' could not be made; is {email} another one's address?")


def _is_password(user: Any, password: str) -> bool:
    from werkzeug.security import check_password_hash

    return check_password_hash(user.password, password)


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["sync"]:
                from include.settings import get_settings

                settings = get_settings()
                if settings.airflow_admin_password is None:
                    raise UsersError("AIRLOOP_AIRFLOW_ADMIN_PASSWORD is not set: the account admin is made with it")
                print(f"{ADMIN} {sync(settings.airflow_admin_password.get_secret_value())}")
            case ["add", name, role, email]:
                add(name, role, email, sys.stdin.readline().rstrip("\n"))
            case ["remove", name]:
                remove(name)
            case ["list"]:
                print(json.dumps(listed()))
            case _:
                raise UsersError(str(__doc__))
    except UsersError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
