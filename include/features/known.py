"""The project's tables as known at a cutoff, which feature functions read."""

from dataclasses import dataclass, field
from datetime import datetime

import pandas as pd

from include.data import layout, tables
from include.projects.base import Project


@dataclass(frozen=True)
class KnownTables:
    """``known(name, since=None)`` returns the rows of a source with known_at in (since, cutoff].

    Later rows are not accessible. With ``versions`` (source -> version of its Delta table) the
    tables are read at these versions, so that a training set can be rebuilt. For samples, ``root``
    is another folder of the project's data than the store's, and rows known by ``floor`` are
    excluded.
    """

    project: Project
    cutoff: datetime
    versions: dict[str, int] = field(default_factory=dict)
    root: str | None = None
    floor: datetime | None = None

    def __call__(self, name: str, *, since: datetime | None = None) -> pd.DataFrame:
        after = max((bound for bound in (since, self.floor) if bound is not None), default=None)
        return tables.read(
            self.project, name, known_by=self.cutoff, since=after, version=self.versions.get(name), root=self.root
        )

    def current_versions(self) -> dict[str, int]:
        """Return source -> version of its table. Sources without a table are left out."""
        versions = {
            source.name: tables.table_version(layout.table(self.project, source.name))
            for source in self.project.sources
        }
        return {name: version for name, version in versions.items() if version is not None}
