"""The project's tables as they were known at a cutoff: what feature functions are given to read."""

from dataclasses import dataclass, field
from datetime import datetime

import pandas as pd

from include.data import layout, tables
from include.projects.base import Project


@dataclass(frozen=True)
class KnownTables:
    """``known(name, since=None)`` gives the rows of a source with known_at in (since, cutoff]; nothing later can be reached.

    With ``versions`` (source -> version of its Delta table) the tables are read as they were then, so that a training
    set can be made again.
    """

    project: Project
    cutoff: datetime
    versions: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, *, since: datetime | None = None) -> pd.DataFrame:
        return tables.read(self.project, name, known_by=self.cutoff, since=since, version=self.versions.get(name))

    def current_versions(self) -> dict[str, int]:
        """Source -> version of its table; sources without a table are left out."""
        found = {source.name: tables.table_version(layout.table(self.project, source.name)) for source in self.project.sources}
        return {name: version for name, version in found.items() if version is not None}
