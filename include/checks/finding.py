"""The findings of a project's check."""

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from include.projects import file_name, file_of
from include.projects.base import Project

# The first stage that fails because of the finding.
Stage = Literal["ingest", "build_features", "train"]


class Finding(NamedTuple):
    """A fault of a project, or a ``warning``, which does not make a stage fail."""

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
    """The files of a project. A finding refers to a file and to the line of the value."""

    def __init__(self, project: Project):
        self._name = project.name
        self._texts: dict[str, str] = {}

    def finding(
        self,
        part: str,
        rule: str,
        value: Any,
        message: str,
        *,
        valid: Iterable[str] = (),
        stage: Stage = "train",
        warning: bool = False,
    ) -> Finding:
        """Return a finding.

        Args:
            part: ``__init__``, ``expectations``, ``features``, ``feed`` or ``feast``.
            valid: Valid names. The one nearest to the value is suggested.
        """
        text = str(value)
        return Finding(
            self.name(part), self.line(part, text), rule, text, message, nearest(text, valid), stage, warning
        )

    def name(self, part: str) -> str:
        return file_name(self._name, part)

    def line(self, part: str, value: str) -> int | None:
        """Return the number of the first line with the value as a literal, or None."""
        literal = re.compile(rf"""(["']){re.escape(value)}\1""")
        return next(
            (number for number, line in enumerate(self.text(part).splitlines(), 1) if literal.search(line)), None
        )

    def exists(self, part: str) -> bool:
        return file_of(self._name, part).is_file()

    def text(self, part: str) -> str:
        """Return the file's content, or an empty text if the file does not exist."""
        if part not in self._texts:
            path = file_of(self._name, part)
            self._texts[part] = path.read_text(errors="replace") if path.is_file() else ""
        return self._texts[part]


def nearest(value: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most similar to a value, or None if no name is similar."""
    return next(iter(difflib.get_close_matches(value, list(valid), 1, 0.5)), None)


def named(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
