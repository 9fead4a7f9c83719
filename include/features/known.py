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
    set can be made again. ``root`` is another folder of the project's data than the store's, and nothing known by ``floor`` is read: for samples.
    """

    project: Project
    cutoff: datetime
    versions: dict[str, int] = field(default_factory=dict)
    root: str | None = None
    floor: datetime | None = None

    def __call__(self, name: str, *, since: datetime | None = None) -> pd.DataFrame:
        after = max((bound for bound in (since, self.floor) if bound is not None), default=None)
        return tables.read(self.project, name, known_by=self.cutoff, since=after, version=self.versions.get(name), root=self.root)

    def current_versions(self) -> dict[str, int]:
        """Source -> version of its table; sources without a table are left out."""
        found = {source.name: tables.table_version(layout.table(self.project, source.name)) for source in self.project.sources}
        return {name: version for name, version in found.items() if version is not None}
