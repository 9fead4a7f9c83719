"""The `airloop` command. Each command is a few lines: what it does lies in the room that it imports when it is called."""

import typer

app = typer.Typer(
    name="airloop",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Airflow, MLflow and serving on this machine, and the loop that they run.\n\n"
    "Begin with [bold]airloop up[/bold]; it prints where everything is and how to log in. Every setting is an environment variable "
    "AIRLOOP_...: see include/settings.py.",
)


@app.command()
def up() -> None:
    """Start what does not run (Airflow, MLflow, serving), wait until each answers, print addresses and login.

    Doing it again is harmless: only what is missing is started. State lies under AIRLOOP_HOME (data/ in the repository); ports are
    AIRLOOP_AIRFLOW_PORT, AIRLOOP_MLFLOW_PORT and AIRLOOP_SERVING_PORT. When a port is taken, nothing is started.
    """
    from include.stack import console

    _exit_unless(console.up(_settings(), _terminal()))


@app.command()
def down() -> None:
    """Stop everything that `airloop up` started, and whatever those processes started. Data stays."""
    from include.stack import console

    console.down(_settings(), _terminal())


@app.command()
def status() -> None:
    """Show each service: whether it answers, its process, its address. Exit status 1 unless all of them answer."""
    from include.stack import console

    _exit_unless(console.status(_settings(), _terminal()))


def _settings():
    from include.settings import get_settings

    return get_settings()


def _terminal():
    from rich.console import Console

    return Console(highlight=False)


def _exit_unless(well: bool) -> None:
    if not well:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
