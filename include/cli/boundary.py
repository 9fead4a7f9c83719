"""One place where a command's errors end: an expected one is told in a line or two, with what to do; exit status 2.

Expected is what an operator can put right: a server or store that is away, a setting, a file, a refusal of Airflow's or MLflow's. Anything else is a fault of
Airloop, and keeps its traceback.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import typer

from include.cli.exits import say
from include.outages import away

# Seconds after which a command that has said nothing says what it does.
PATIENCE = 4.0
# They show their progress by themselves.
TALKATIVE = {"up", "down", "demo", "try", "doctor", "migrate"}
INTERRUPTED = 130
# Modules of the libraries that speak to each server, and the setting that says where it is.
SERVERS = (
    (("httpx", "include.stack.api"), "Airflow", "airflow_url"),
    (("mlflow", "requests", "urllib3"), "MLflow", "mlflow_url"),
    (("psycopg2", "psycopg", "sqlalchemy", "sqlite3"), "the database", ""),
    (("redis",), "the online store", ""),
    (("botocore", "s3fs", "include.data.storage", "aiohttp"), "the object store", "data_root"),
)


def run(command: Callable[[], Any], name: str) -> None:
    """Run a command; end the process with its exit status.

    Args:
        name: of the command, as it was typed.
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
    """Return what to tell of an error that an operator can put right; None: it is a fault of Airloop."""
    from include.settings import SettingsError

    if (what := away(error)) is not None:
        return f"{_server(error)} does not answer ({what}). `airloop status` shows what runs, `airloop up` starts it; `airloop doctor` asks each store"
    if isinstance(error, SettingsError):
        return str(error)
    if (refusal := _refusal(error)) is not None:
        return refusal
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _server(error: BaseException) -> str:
    """Return the name and the address of the server that an error speaks of."""
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
    """Return the words of errors that say themselves what is wrong."""
    text = " ".join(str(error).split())[:600]
    names = {f"{one.__module__.partition('.')[0]}.{one.__qualname__}" for one in type(error).__mro__}
    if "httpx.HTTPStatusError" in names:
        return f"Airflow refuses: {text}"
    if "mlflow.MlflowException" in names:
        return f"MLflow refuses: {text}"
    if "sqlite3.DatabaseError" in names or "sqlalchemy.DBAPIError" in names:
        return f"the database refuses: {text.partition(' [SQL:')[0]}. Is its file damaged? docs/runbooks/operations.md restores a backup"
    if type(error).__module__.startswith("include."):
        # Errors of our own have a sentence for whoever runs the command.
        return text
    return None


def _tops(error: BaseException) -> set[str]:
    found: set[str] = set()
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        module = type(current).__module__
        found |= {module, module.partition(".")[0]}
        current = current.__cause__ or current.__context__
    return found


def _say_that_it_waits(name: str) -> None:
    from include.cli import exits

    if not exits.has_said:
        typer.echo(f"airloop {name}: still at work after {PATIENCE:g} s. If a server hangs, `airloop doctor` finds out which; Ctrl-C ends this", err=True)
