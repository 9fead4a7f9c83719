"""Commands for Airflow's accounts and their roles."""

from typing import Annotated, Literal

import typer

from include.cli.exits import Json, exit_on, say, say_json, settings_or_exit

app = typer.Typer(
    no_args_is_help=True,
    help="Manage Airflow's accounts and their roles: viewer, editor, operator, admin (see docs/runbooks/access.md).",
)


@app.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="Login name of the account.")],
    role: Annotated[
        Literal["viewer", "editor", "operator", "admin"],
        typer.Option(
            help=(
                "viewer can read. editor can also start runs. operator can also configure. admin can also manage"
                " accounts."
            )
        ),
    ],
    email: Annotated[str | None, typer.Option(help="Email address. Default: NAME@localhost.")] = None,
) -> None:
    """Create an account, or change an existing account's role. Prints a new password once."""
    from include.stack.accounts import users

    with exit_on(users.UsersError):
        say(users.add(settings_or_exit(), name, role, email))


@app.command("remove")
def remove_user(name: Annotated[str, typer.Argument(help="Login name of the account.")]) -> None:
    """Delete an account. Its sessions end within half a minute."""
    from include.stack.accounts import users

    with exit_on(users.UsersError):
        users.remove(settings_or_exit(), name)


@app.command("list")
def list_users(as_json: Json = False) -> None:
    """Show every account with its roles."""
    from include.stack.accounts import users

    with exit_on(users.UsersError):
        accounts = users.listed(settings_or_exit())
    if as_json:
        say_json(accounts)
        return
    for user in accounts:
        say(
            f"{user['name']}: {', '.join(user['roles']) or 'no role'}{'' if user['active'] else ' (not active)'}"
            f" <{user['email']}>"
        )


@app.command("sync")
def sync_users() -> None:
    """Set the admin's password and the roles' permissions from the settings.

    The password of the account admin is AIRLOOP_AIRFLOW_ADMIN_PASSWORD. `airloop migrate` does this
    too. Running it again changes nothing. A changed password ends the account's sessions.
    """
    from include.stack.accounts import users

    with exit_on(users.UsersError):
        say(users.sync(settings_or_exit()))
