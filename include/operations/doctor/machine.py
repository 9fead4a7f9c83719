"""Check this machine: settings and secrets, disk space, file permissions."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from include import ledger
from include.data import storage
from include.operations.doctor.finding import Finding, fault, note, ok
from include.settings import Settings, SettingsError, settings_file

LEAST_FREE, LEAST_SHARE = 2**30, 0.05


def secrets_given(settings: Settings) -> Iterator[Finding]:
    """Check that all parts have their secrets. Report freezes.

    The settings themselves could be read, otherwise this check would not run.
    """
    try:
        # The process that runs the doctor may have no settings of MLflow's server, as in Airflow's
        # containers.
        settings.require(
            "tasks", "airflow", "accounts", "serving", *(("mlflow",) if settings.mlflow_database_url else ())
        )
    except SettingsError as error:
        yield fault(
            "settings",
            str(error).splitlines()[0],
            "set them in the settings file; `make secrets` makes those that are to be made up",
        )
    else:
        yield ok("settings", f"profile {settings.profile}, complete")
    try:
        frozen = ledger.freezes()
    # The check of the databases reports the error.
    except Exception:
        frozen = []
    for held in frozen:
        yield note("freeze", str(held))


def unreadable_settings(error: ValidationError | SettingsError) -> Finding:
    """Return the fault for invalid settings. No other check can run then."""
    if isinstance(error, ValidationError):
        message = "; ".join(
            str(one["msg"]).removeprefix("Value error, ")
            for one in error.errors(include_input=False, include_url=False)
        )
    else:
        message = str(error)
    return fault(
        "settings",
        " ".join(message.split()),
        "correct the named settings in the settings file or the environment; .env.<profile>.example explains each",
    )


def disk(settings: Settings) -> Iterator[Finding]:
    places = {"AIRLOOP_HOME": settings.home, "the temporary folder (TMPDIR)": Path(tempfile.gettempdir())}
    if not storage.is_object_store(settings.store):
        places["AIRLOOP_DATA_ROOT"] = Path(settings.store)
    seen = set()
    for name, place in places.items():
        there = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        room = shutil.disk_usage(there)
        space = f"{room.free / 2**30:.1f} GiB of {room.total / 2**30:.1f} GiB are free where {name} is ({there})"
        if room.free < LEAST_FREE or room.free < LEAST_SHARE * room.total:
            yield fault(
                "disk",
                f"nearly full: {space}",
                "make room (old logs, reports, cache), or move it to a bigger disk: a full one breaks databases",
            )
        else:
            yield ok("disk", space)


def permissions(settings: Settings) -> Iterator[Finding]:
    """Check that Airloop can write its own files and that only their owner can read secrets."""
    home = settings.home
    there = next((p for p in (home, *home.parents) if p.exists()), Path("/"))
    if not os.access(there, os.W_OK | os.X_OK):
        yield fault(
            "permissions",
            f"AIRLOOP_HOME is {home}, where user {os.getuid()} may not write",
            f"chown it to that user, or run as user {there.stat().st_uid}",
        )
    private = [home / "airflow" / "secrets.json", home / "airflow" / "simple_auth_manager_passwords.json.generated"]
    if file := settings_file():
        private.append(Path(file))
    open_to_others = [file for file in private if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077]
    for file in open_to_others:
        yield fault(
            "permissions",
            f"{file} has secrets and can be read by others ({stat.S_IMODE(file.stat().st_mode):o})",
            f"chmod 600 {file}",
        )
    if not open_to_others:
        yield ok("permissions", "what holds secrets is its owner's alone")
