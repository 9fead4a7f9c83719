"""How a command ends: 0, it went well; 1, it looked and something is not well; 2, it could not do what was asked, and says why."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from include.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from include.settings import Settings
    from include.stack.api import AirflowApi

Found = TypeVar("Found")
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
# Whether this process has told anything yet.
has_said = False
# Seconds within which a server must answer, or the command says that it does not.
SERVER_SECONDS = 4.0


def settings_or_exit() -> "Settings":
    """The settings, with the standard variables of the libraries set from them."""
    from include.settings import SettingsError, get_settings, hand_on_standard_variables

    try:
        hand_on_standard_variables()
        return get_settings()
    except SettingsError as error:
        fail(str(error))


def terminal() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def or_exit(find: Callable[[str], Found], name: str) -> Found:
    """What ``find`` gives, or its words and exit status 2."""
    try:
        return find(name)
    except ValueError as error:
        fail(str(error))


def told(error: type[Exception], do: Callable[..., Any], *arguments: Any) -> Any:
    """What ``do`` gives, or the error's words and exit status 2."""
    try:
        return do(*arguments)
    except error as fault:
        fail(str(fault))


def say(text: object = "", *, err: bool = False) -> None:
    """Print; a terminal must not obey what strangers wrote into a reason, a name or an error."""
    global has_said
    has_said = True
    typer.echo(printable(text, keep="\n\t"), err=err)


def say_json(content: Any) -> None:
    """Print a document for programs; what is no JSON is shown as text."""
    import json

    say(json.dumps(content, indent=1, default=str))


def airflow_or_exit() -> "AirflowApi":
    """Return the API of this installation's Airflow, or end with exit status 2: it does not answer in time, or another installation's does."""
    from include import ledger
    from include.stack.api import AirflowApi, WrongAirflow

    settings = settings_or_exit()
    _ask(f"{settings.airflow_url}/api/v2/version", "Airflow", settings.airflow_url)
    airflow = AirflowApi.of(settings)
    told(WrongAirflow, airflow.refuse_other, ledger.known_installation())
    return airflow


def mlflow_or_exit(note: str = "") -> None:
    """End with exit status 2 if MLflow does not answer in time. Set its client, which tries for minutes otherwise, to try once.

    Args:
        note: told too if MLflow does not answer.
    """
    import os

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    settings = settings_or_exit()
    address = os.environ.get("MLFLOW_TRACKING_URI") or settings.mlflow_url  # as MLflow's client finds it
    _ask(f"{address}/health", "MLflow", address, note)


def _ask(url: str, name: str, address: str, note: str = "") -> None:
    import httpx

    if not url.startswith(("http://", "https://")):
        return  # a store of MLflow's in a file
    try:
        answer = httpx.get(url, timeout=SERVER_SECONDS, trust_env=False)
    except httpx.TransportError as error:
        fail(
            f"{name} does not answer at {address}: {error or type(error).__name__}. `airloop status` shows what runs, `airloop up` starts it"
            + (f"\n{note}" if note else "")
        )
    if answer.is_server_error:
        fail(f"{name} at {address} answers {answer.status_code}: {answer.text[:200]}. `airloop status` names its log")


def fail(message: str) -> NoReturn:
    say(message, err=True)
    raise typer.Exit(2)


def exit_unless(well: bool) -> None:
    if not well:
        raise typer.Exit(1)
