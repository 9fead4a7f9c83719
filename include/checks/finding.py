"""What the check of a project finds."""

import difflib
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from include.projects.base import Project

Stage = Literal["ingest", "build_features", "train"]  # the first stage that fails by it


class Finding(NamedTuple):
    """A fault of a project, or a ``warning``, by which no stage fails."""

    file: str
    line: int | None
    rule: str
    value: str
    message: str
    nearest: str | None = None
    stage: Stage = "train"
    warning: bool = False

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        hint = f" Did you mean '{self.nearest}'?" if self.nearest else ""
        return f"{place}: {self.rule}: {self.message}.{hint}"


class Files:
    """The files of a project. Findings name them, and the line where the value stands."""

    def __init__(self, project: Project):
        self._name = project.name
        self._texts: dict[str, str] = {}

    def finding(self, part: str, rule: str, value: Any, message: str, *, valid: Iterable[str] = (), stage: Stage = "train", warning: bool = False) -> Finding:
        """Make a finding.

        Args:
            part: ``__init__``, ``expectations``, ``features``, ``feed`` or ``feast``.
            valid: names that the value may be, of which the nearest one is proposed.
        """
        text = str(value)
        return Finding(self.name(part), self.line(part, text), rule, text, message, nearest(text, valid), stage, warning)

    def name(self, part: str) -> str:
        return f"feature_repo/{self._name}.py" if part == "feast" else f"include/projects/{self._name}/{part}.py"

    def line(self, part: str, value: str) -> int | None:
        """Return the first line with the value as a literal."""
        literal = re.compile(rf"""(["']){re.escape(value)}\1""")
        return next((number for number, line in enumerate(self.text(part).splitlines(), 1) if literal.search(line)), None)

    def text(self, part: str) -> str:
        """Return the file's content; empty if there is no such file."""
        if part not in self._texts:
            path = self.path(part)
            self._texts[part] = path.read_text(errors="replace") if path is not None and path.is_file() else ""
        return self._texts[part]

    def path(self, part: str) -> Path | None:
        folders = import_module("feature_repo" if part == "feast" else "include.projects").__path__
        relative = f"{self._name}.py" if part == "feast" else f"{self._name}/{part}.py"
        return next((Path(folder) / relative for folder in folders if (Path(folder) / relative).is_file()), None)


def nearest(value: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most like a value; None: none is like it."""
    return next(iter(difflib.get_close_matches(value, list(valid), 1, 0.5)), None)


def named(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
