"""Airflow's users and roles, kept by its FAB auth manager in its own database. Run as a process of its own, in Airflow's environment:

    python -m include.dag_kit.users sync                      the roles, and the account admin with the password of the settings
    python -m include.dag_kit.users add NAME ROLE EMAIL       with the password that standard input gives
    python -m include.dag_kit.users remove NAME
    python -m include.dag_kit.users list                      JSON

``include.stack.users`` calls it so. Passwords are never arguments: everybody on the machine could read those.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The field's words, and what FAB calls them. Each may all that the one before it may.
ROLES = {"viewer": "Viewer", "editor": "User", "operator": "Op", "admin": "Admin"}
ADMIN = "admin"
# The UI builds the plugins' pages from this list; without it a viewer sees no report.
EVERYBODYS = (("can_read", "Plugins"),)


class UsersError(ValueError):
    """The users cannot be changed so; the message says why."""


def sync(password: str) -> str:
    """Make the roles and the admin's account what they should be; gives what was done. However often and by however many it is called at once.

    Args:
        password: of the account ``admin``. A changed secret becomes its password, and ends its sessions.
    """
    with _manager() as users:
        users.sync_roles()
        for name in ("Viewer", "User"):
            role = users.find_role(name)
            for action, resource in EVERYBODYS:
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
    """Make an account, or give the one that is there this role, address and password.

    Raises:
        UsersError: there is no such role, or it is the admin's account, which belongs to the settings.
    """
    if role not in ROLES:
        raise UsersError(f"there is no role '{role}'; there is {', '.join(ROLES)}")
    if name == ADMIN:
        raise UsersError(f"the account {ADMIN} belongs to the setting AIRLOOP_AIRFLOW_ADMIN_PASSWORD; change that and run `airloop users sync`")
    with _manager() as users:
        found = users.find_user(username=name)
        if found is None:
            _add(users, name, role, email, password)
            return
        found.roles, found.email = [users.find_role(ROLES[role])], email
        users.update_user(found)
        users.reset_password(found.id, password)


def remove(name: str) -> None:
    """Take an account away; its tokens open nothing any more.

    Raises:
        UsersError: there is none of this name, or it is the admin's.
    """
    if name == ADMIN:
        raise UsersError(f"the account {ADMIN} is the house's own: it is made again at the next start")
    with _manager() as users:
        found = users.find_user(username=name)
        if found is None:
            raise UsersError(f"there is no user '{name}'")
        found.roles.clear()
        if not users.del_register_user(found):
            raise UsersError(f"'{name}' could not be removed; Airflow's own log says why")


def listed() -> list[dict[str, Any]]:
    """Every account: ``name``, ``roles`` in the field's words (a site's own roles by their own names), ``email``, ``active``."""
    words = {theirs: ours for ours, theirs in ROLES.items()}
    with _manager() as users:
        return [
            {"name": u.username, "roles": [words.get(r.name, r.name) for r in u.roles], "email": u.email, "active": bool(u.active)}
            for u in sorted(users.get_all_users(), key=lambda user: user.username)
        ]


@contextmanager
def _manager() -> Iterator[Any]:
    """FAB's security manager, under Airflow's own lock for migrations: whoever comes second waits, and finds it done."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils.db import DBLocks, create_global_lock
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded
    from airflow.utils.session import create_session

    providers_configuration_loaded(lambda: None)()
    with create_session() as session, create_global_lock(session, DBLocks.MIGRATIONS), get_application_builder() as builder:
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
