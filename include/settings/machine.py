"""How this machine runs Airflow and the projects."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from include.settings.profile import Profile
from include.settings.repository import REPOSITORY


class Machine(Profile):
    """The code, the projects and the processes of this machine."""

    git_sha: str | None = Field(
        None, description="Commit of this code, for places without its git repository, such as an image."
    )
    preload_libraries: bool = Field(
        True, description="Import heavy third-party libraries once in the scheduler, instead of in each task."
    )
    restart: bool = Field(True, description="Restart processes of the embedded stack that died, with back-off.")
    parallelism: int = Field(4, ge=2, description="Number of tasks that run concurrently on this machine.")
    projects: str | None = Field(
        None,
        description=(
            "Absolute paths of folders with projects, names of projects, or both, separated by commas. With names, only"
            " these projects are loaded. Without names, all projects of the folders. Default: every folder of"
            " include/projects."
        ),
    )
    dags_folder: Path = Field(REPOSITORY / "dags", description="Folder that contains the DAG files.")
    # docs/lifecycle.md
    notify: str | None = Field(
        None,
        description=(
            "Hook for notices to operators, for example that a request was abandoned: module:function, called with a"
            " dict, or a URL that accepts it as JSON by POST."
        ),
    )
    sample_days: float | None = Field(
        None,
        gt=0,
        description=(
            "Number of days that the sample of `airloop try` spans. `airloop try` sets it (see Project.on_sample)."
        ),
    )

    @property
    def project_folders(self) -> list[Path]:
        """Return the folders outside of this repository that contain projects."""
        return [Path(entry) for entry in _entries(self.projects) if "/" in entry]

    @property
    def project_names(self) -> list[str]:
        """Return the names of the only projects to load. Empty: all."""
        return sorted({entry for entry in _entries(self.projects) if "/" not in entry})

    def projects_only(self, name: str) -> str:
        """Return the value of ``projects`` that loads one project alone, from the same folders."""
        return ",".join([*map(str, self.project_folders), name])

    @field_validator("projects")
    @classmethod
    def _absolute_folders(cls, value: str | None) -> str | None:
        for entry in _entries(value):
            if "/" in entry and not Path(entry).is_absolute():
                raise ValueError(
                    f"AIRLOOP_PROJECTS: '{entry}' is a relative path, and processes have different working folders;"
                    " write an absolute path"
                )
        return value

    @field_validator("notify")
    @classmethod
    def _hook(cls, value: str | None) -> str | None:
        if value is None or re.fullmatch(r"https?://[^\s]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
            return value
        raise ValueError("AIRLOOP_NOTIFY must be a URL (https://...) or a function (package.module:function)")


def _entries(projects: str | None) -> list[str]:
    return [entry.strip() for entry in (projects or "").split(",") if entry.strip()]
