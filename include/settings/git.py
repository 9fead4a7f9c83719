"""The commits of this code and of the projects outside of it."""

import subprocess
from functools import lru_cache
from pathlib import Path

from include.settings.model import get_settings
from include.settings.repository import REPOSITORY

# A change of these files can change the result of a training step.
CODE = ("include", "feature_repo", "dags", "serving", "plugins", "config", "requirements.txt")


@lru_cache
def git_sha() -> str:
    """Return the commit of this code, or "unknown" if it cannot be determined.

    The setting takes precedence over the repository. "<commit>-dirty" means that files in ``CODE``
    have changed since the commit. The commit of each folder of AIRLOOP_PROJECTS follows, after a
    dot.
    """
    if known := get_settings().git_sha:
        return known
    return ".".join([_commit(REPOSITORY, *CODE), *(_commit(folder, ".") for folder in get_settings().project_folders)])


def _commit(folder: Path, *files: str) -> str:
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "--no-optional-locks", "status", "--porcelain", "--untracked-files=normal", "--", *files)
    # There is no git, or no folder.
    except FileNotFoundError:
        return "unknown"
    return "unknown" if commit is None else f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git, or None if git fails, for example outside a repository."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
