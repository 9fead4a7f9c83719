"""Exit statuses of the commands, and the functions that set them.

Status 0 means success, and 1 means that the command ran and found a problem. With status 2 the
command could not do its work, and it reports why.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from include.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from include.projects.base import Project
    from include.settings import Settings
    from include.stack.api import AirflowApi

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# Whether this process has printed anything yet.
has_printed = False
# Seconds within which a server must answer. After that the command reports a failure.
SERVER_SECONDS = 4.0


def stated(value: str) -> str:
    """Return an option's text without surrounding space. Callback of the options ``--reason``.

    Raises:
        typer.BadParameter: The text is empty.
    """
    if not value.strip():
        raise typer.BadParameter("it is empty. State the reason")
    return value.strip()


def settings_or_exit() -> "Settings":
    """Return the settings, and set the libraries' standard variables from them."""
    from include.settings import SettingsError, export_library_env, get_settings

    try:
        export_library_env()
        return get_settings()
    except SettingsError as error:
        fail(str(error))


def terminal() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def project_or_exit(name: str) -> "Project":
    from include.projects import get_project

    with exit_on(ValueError):
        return get_project(name)


@contextmanager
def exit_on(*errors: type[Exception]) -> Iterator[None]:
    """Print an error of these classes and exit with status 2."""
    try:
        yield
    except errors as error:
        fail(str(error))


def say(text: object = "", *, err: bool = False) -> None:
    """Print a text.

    Control characters are escaped, because reasons, names and errors may come from untrusted
    sources.
    """
    global has_printed
    has_printed = True
    typer.echo(printable(text, keep="\n\t"), err=err)


def say_json(content: Any) -> None:
    """Print a JSON document. Values that JSON cannot represent are converted to text."""
    import json

    say(json.dumps(content, indent=1, default=str))


def airflow_or_exit() -> "AirflowApi":
    """Return the API of this installation's Airflow.

    Exit with status 2 if it does not answer in time, or if another installation's Airflow answers.
    """
    from include import ledger
    from include.stack.api import AirflowApi, WrongAirflowError

    settings = settings_or_exit()
    _ask(f"{settings.airflow_url}/api/v2/version", "Airflow", settings.airflow_url)
    airflow = AirflowApi.from_settings(settings)
    with exit_on(WrongAirflowError):
        airflow.refuse_other(ledger.known_installation())
    return airflow


def mlflow_or_exit(note: str = "") -> None:
    """Exit with status 2 if MLflow does not answer in time.

    Limit MLflow's client, which otherwise retries for minutes, to one retry.

    Args:
        note: Text that is also printed if MLflow does not answer.
    """
    import os

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    settings = settings_or_exit()
    # MLflow's client uses the same order.
    address = os.environ.get("MLFLOW_TRACKING_URI") or settings.mlflow_url
    _ask(f"{address}/health", "MLflow", address, note)


def _ask(url: str, name: str, address: str, note: str = "") -> None:
    import httpx

    if not url.startswith(("http://", "https://")):
        # MLflow's store is a file.
        return
    try:
        answer = httpx.get(url, timeout=SERVER_SECONDS, trust_env=False)
    except httpx.TransportError as error:
        fail(
            f"{name} does not answer at {address}: {error or type(error).__name__}. `airloop status` shows what runs,"
            " `airloop up` starts it" + (f"\n{note}" if note else "")
        )
    if answer.is_server_error:
        fail(f"{name} at {address} answers {answer.status_code}: {answer.text[:200]}. `airloop status` names its log")


def fail(message: str) -> NoReturn:
    say(message, err=True)
    raise typer.Exit(2)


def exit_unless(well: bool) -> None:
    if not well:
        raise typer.Exit(1)
