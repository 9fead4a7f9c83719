"""Former names of settings. They are accepted until version 0.3."""

import warnings
from collections.abc import Mapping
from pathlib import Path

# Former name -> name.
RENAMED = {
    "studies_url": "optuna_url",
    "checkpoint_steps": "checkpoint_every_steps",
    "preload": "preload_libraries",
    "feast_reader_url": "feast_readonly_url",
}


def with_new_names(variables: Mapping[str, str | None], prefix: str = "airloop_") -> dict[str, str | None]:
    """Return the variables with the new names of settings.

    A new name that has a value takes precedence over its former name.

    Args:
        variables: Name in lower case -> value.
    """
    renamed = dict(variables)
    for former, name in RENAMED.items():
        # An empty variable counts as unset. Compose passes variables that have no value.
        if not (value := renamed.pop(f"{prefix}{former}", None)):
            continue
        warnings.warn(
            f"AIRLOOP_{former.upper()} is now called AIRLOOP_{name.upper()}. The former name is accepted until"
            " version 0.3",
            FutureWarning,
            stacklevel=2,
        )
        if not renamed.get(f"{prefix}{name}"):
            renamed[f"{prefix}{name}"] = value
    return renamed


def files_with_former_names(folder: Path | None) -> dict[str, str]:
    """Return setting -> content of the secret files in this folder that have a former name."""
    if not folder:
        return {}
    former = {f"airloop_{name}" for name in RENAMED}
    contents = {file.name.lower(): file.read_text().strip() for file in folder.iterdir() if file.name.lower() in former}
    return {
        name.removeprefix("airloop_"): value or ""
        for name, value in with_new_names(contents).items()
        if value is not None
    }
