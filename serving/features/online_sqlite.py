"""Read Feast's online store in SQLite: all views of a request in one statement."""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from serving.features.feast_registry import EntityGroup
from serving.features.feast_wire import values
from serving.features.feature_values import FeatureValues

# Seconds that a reader in a thread waits for a writer.
PATIENCE = 5.0


class SqliteOnline:
    """Read directly if possible. While a writer locks the file, wait in a thread.

    The event loop is not blocked.
    """

    def __init__(self, path: Path, project: str) -> None:
        self.path, self.project = path, project
        self._quick: sqlite3.Connection | None = None
        self._patient: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def read_at_once(
        self, groups: Sequence[EntityGroup], keys: Sequence[Sequence[bytes]]
    ) -> list[dict[bytes, FeatureValues]] | None:
        """Return the result of ``read`` without waiting, or None if the file is locked or fails."""
        try:
            return None if self._quick is None else self._read(self._quick, groups, keys)
        except (sqlite3.Error, ValueError):  # A value is not a scalar.
            return None

    async def read(
        self, groups: Sequence[EntityGroup], keys: Sequence[Sequence[bytes]]
    ) -> list[dict[bytes, FeatureValues]]:
        """Return the stored rows of each group's entities.

        Entities without a row and views without a row are omitted.

        Raises:
            sqlite3.Error, OSError: The store is unavailable.
        """
        try:
            if self._quick is None:
                self._quick = self._connect(0)
            return self._read(self._quick, groups, keys)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                self._quick = None  # The file may have been replaced.
                raise
        return await asyncio.to_thread(self._read_patiently, groups, keys)

    def _read_patiently(
        self, groups: Sequence[EntityGroup], keys: Sequence[Sequence[bytes]]
    ) -> list[dict[bytes, FeatureValues]]:
        with self._lock:
            if self._patient is None:
                self._patient = self._connect(PATIENCE)
            return self._read(self._patient, groups, keys)

    def _connect(self, timeout: float) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=timeout, check_same_thread=False
        )

    def _read(
        self, connection: sqlite3.Connection, groups: Sequence[EntityGroup], keys: Sequence[Sequence[bytes]]
    ) -> list[dict[bytes, FeatureValues]]:
        features: list[dict[bytes, FeatureValues]] = [{} for _ in groups]
        queries = [
            (rows, view, mine)
            for rows, group, mine in zip(features, groups, keys, strict=True)
            if mine
            for view in group.views
        ]
        if not queries:
            return features
        statement = _statement(tuple((f"{self.project}_{view.stored}", len(mine)) for _, view, mine in queries))
        every = connection.execute(statement, [key for _, _, mine in queries for key in mine])
        # Other features of the view may have values that are not scalars.
        scalars = [row for row in every if row[2] in queries[row[0]][1].features]
        for (number, key, feature, _, stored), one in zip(scalars, values([row[3] for row in scalars]), strict=True):
            rows, view, _ = queries[number]
            at = _moment(stored)
            if at is None:
                continue
            row = rows.get(key)
            if row is None:
                row = rows[key] = FeatureValues({}, {})
            row.times[view.name] = at
            row.values[feature] = one
        return features


@lru_cache(4096)
def _statement(tables: tuple[tuple[str, int], ...]) -> str:
    selects = []
    for number, (table, count) in enumerate(tables):
        quoted = '"' + table.replace('"', '""') + '"'
        selects.append(
            f"SELECT {number}, entity_key, feature_name, value, event_ts FROM {quoted} WHERE entity_key IN"
            f" ({','.join('?' * count)})"
        )
    return " UNION ALL ".join(selects)


@lru_cache(65536)
def _moment(stored: int | str | None) -> datetime | None:
    """Return the time of a stored value.

    Feast's adapters store seconds of a naive time that means UTC. Older ones stored text.
    """
    if stored is None:
        return None
    at = datetime.fromtimestamp(stored) if isinstance(stored, int) else datetime.fromisoformat(stored)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
