"""The `airloop` command.

Each command is a few lines. It imports its implementation from another package when it is called.
"""

import sys
from typing import Annotated

import typer

from include.cli import archives, boundary, loop, models, services, users

app = typer.Typer(
    name="airloop",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help=(
        "Run Airflow, MLflow and serving on this machine, and operate the training loop.\n\nStart with [bold]airloop"
        " up[/bold], which prints all addresses and the login. Each setting is an environment variable AIRLOOP_... (see"
        " include/settings/)."
    ),
)
for panel, commands in (("Services", services), ("The loop", loop), ("Models", models), ("Backup", archives)):
    for command in commands.app.registered_commands:
        command.rich_help_panel = panel
    app.add_typer(commands.app)
# Former names of commands. They are accepted until version 0.3.
RENAMED = {
    "request": "retrain",
    "feed": "replay",
    "secrets": "init-env",
    "databases": "create-databases",
    "pools": "sync-pools",
}
_COMMANDS = {
    (command.name or command.callback.__name__.replace("_", "-")): command.callback
    for commands in (services, loop)
    for command in commands.app.registered_commands
    if command.callback
}
for former, name in RENAMED.items():
    app.command(former, hidden=True)(_COMMANDS[name])
app.add_typer(users.app, name="users", rich_help_panel="Services")


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda given: _print_version() if given else None,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Define the options that all commands share."""


def main() -> None:
    """Run the command given on the command line."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command in RENAMED:
        typer.echo(
            f"airloop {command} is now called airloop {RENAMED[command]}. The former name is accepted until version"
            " 0.3.",
            err=True,
        )
    boundary.run(app, command)


def _print_version() -> None:
    from importlib.metadata import version

    typer.echo(f"airloop {version('airloop')}")
    raise typer.Exit
