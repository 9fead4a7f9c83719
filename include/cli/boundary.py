"""Handle the errors of all commands in one place.

An expected error is reported in one or two lines together with the fix, and the exit status is 2.
An error is expected if an operator can fix its cause: an unavailable server or store, a setting, a
file, or a refusal from Airflow or MLflow. Any other error is a bug in Airloop and keeps its
traceback.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import typer

from include.cli.exits import say
from include.outages import outage_of

# Seconds after which a command without output reports that it is still running.
PATIENCE = 4.0
# These commands show their own progress.
TALKATIVE = {"up", "down", "demo", "try", "doctor", "migrate"}
INTERRUPTED = 130
# Modules of the libraries that call each server, and the setting with its address.
SERVERS = (
    (("httpx", "include.stack.api"), "Airflow", "airflow_url"),
    (("mlflow", "requests", "urllib3"), "MLflow", "mlflow_url"),
    (("psycopg2", "psycopg", "sqlalchemy", "sqlite3"), "the database", ""),
    (("redis",), "the online store", ""),
    (("botocore", "s3fs", "include.data.storage", "aiohttp"), "the object store", "data_root"),
)


def run(command: Callable[[], Any], name: str) -> None:
    """Run a command. End the process with the command's exit status.

    Args:
        name: Name of the command as typed.
    """
    notice = threading.Timer(PATIENCE, _say_that_it_waits, [name])
    notice.daemon = True
    if name not in TALKATIVE:
        notice.start()
    try:
        command()
    except KeyboardInterrupt:
        say("interrupted; every command can be run again", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        words = expected(error)
        if words is None:
            raise
        say(words, err=True)
        sys.exit(2)
    finally:
        notice.cancel()


def expected(error: BaseException) -> str | None:
    """Return the message for an error that an operator can fix, or None if it is a bug."""
    from include.settings import SettingsError

    if (what := outage_of(error)) is not None:
        return (
            f"{_server(error)} does not answer ({what}). `airloop status` shows what runs, `airloop up` starts it;"
            " `airloop doctor` asks each store"
        )
    if isinstance(error, SettingsError):
        return str(error)
    if (refusal := _refusal(error)) is not None:
        return refusal
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _server(error: BaseException) -> str:
    """Return the name and address of the server that an error refers to."""
    from include.settings import SettingsError, get_settings

    top = _tops(error)
    for modules, name, setting in SERVERS:
        if top & set(modules):
            try:
                return f"{name} at {getattr(get_settings(), setting)}" if setting else name
            except SettingsError:
                return name
    return "a server"


def _refusal(error: BaseException) -> str | None:
    """Return the message of an error that already describes its cause, or None for other errors."""
    text = " ".join(str(error).split())[:600]
    names = {f"{one.__module__.partition('.')[0]}.{one.__qualname__}" for one in type(error).__mro__}
    if "httpx.HTTPStatusError" in names:
        return f"Airflow refuses: {text}"
    if "mlflow.MlflowException" in names:
        return f"MLflow refuses: {text}"
    if "sqlite3.DatabaseError" in names or "sqlalchemy.DBAPIError" in names:
        return (
            f"the database refuses: {text.partition(' [SQL:')[0]}. Is its file damaged? docs/runbooks/operations.md"
            " restores a backup"
        )
    if type(error).__module__.startswith("include."):
        # Airloop's own errors have a message for the user of the command.
        return text
    return None


def _tops(error: BaseException) -> set[str]:
    modules: set[str] = set()
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        module = type(current).__module__
        modules |= {module, module.partition(".")[0]}
        current = current.__cause__ or current.__context__
    return modules


def _say_that_it_waits(name: str) -> None:
    from include.cli import exits

    if not exits.has_printed:
        typer.echo(
            f"airloop {name}: still at work after {PATIENCE:g} s. If a server hangs, `airloop doctor` finds out which;"
            " Ctrl-C ends this",
            err=True,
        )
