"""Airflow's accounts and their roles."""

from typing import Annotated, Literal

import typer

from include.cli.exits import Json, say, say_json, settings_or_exit, told

app = typer.Typer(no_args_is_help=True, help="Airflow's accounts and their roles: viewer, editor, operator, admin (docs/runbooks/access.md).")


@app.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="As the person logs in.")],
    role: Annotated[Literal["viewer", "editor", "operator", "admin"], typer.Option(help="viewer: reads. editor: also runs. operator: also configures.")],
    email: Annotated[str | None, typer.Option(help="Default: NAME@localhost.")] = None,
) -> None:
    """Make an account, or give the one that is there another role; prints its new password, once."""
    from include.stack import users as of

    say(told(of.UsersError, of.add, settings_or_exit(), name, role, email))


@app.command("remove")
def remove_user(name: Annotated[str, typer.Argument(help="As the person logs in.")]) -> None:
    """Take an account away; whoever is logged in with it is out within half a minute."""
    from include.stack import users as of

    told(of.UsersError, of.remove, settings_or_exit(), name)


@app.command("list")
def list_users(as_json: Json = False) -> None:
    """Show every account with its roles."""
    from include.stack import users as of

    users = told(of.UsersError, of.listed, settings_or_exit())
    if as_json:
        say_json(users)
        return
    for user in users:
        say(f"{user['name']}: {', '.join(user['roles']) or 'no role'}{'' if user['active'] else ' (not active)'} <{user['email']}>")


@app.command("sync")
def sync_users() -> None:
    """Give the account admin the password of AIRLOOP_AIRFLOW_ADMIN_PASSWORD, and the roles their rights. `airloop migrate` does it too.

    Doing it again changes nothing. A changed password ends the account's sessions.
    """
    from include.stack import users as of

    say(told(of.UsersError, of.sync, settings_or_exit()))
