"""Feast's online store in SQLite: all views of a request in one statement."""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from serving.feast_registry import Group
from serving.feast_wire import values
from serving.looked_up import LookedUp

PATIENCE = 5.0  # seconds that a reader waits for a writer; in a thread


class SqliteOnline:
    """Reads at once where it can; while a writer holds the file it waits in a thread, so that the event loop goes on."""

    def __init__(self, path: Path, project: str) -> None:
        self.path, self.project = path, project
        self._quick: sqlite3.Connection | None = None
        self._patient: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def read_at_once(self, groups: Sequence[Group], keys: Sequence[Sequence[bytes]]) -> list[dict[bytes, LookedUp]] | None:
        """``read`` without waiting; None: a writer holds the file, or something is wrong with it."""
        try:
            return None if self._quick is None else self._read(self._quick, groups, keys)
        except (sqlite3.Error, ValueError):  # a value that is no scalar
            return None

    async def read(self, groups: Sequence[Group], keys: Sequence[Sequence[bytes]]) -> list[dict[bytes, LookedUp]]:
        """What the store has of each group's entities; one without a row is left out, and so is a view that has none.

        Raises:
            sqlite3.Error, OSError: the store cannot be read now.
        """
        try:
            if self._quick is None:
                self._quick = self._connect(0)
            return self._read(self._quick, groups, keys)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                self._quick = None  # the file may have been put there anew
                raise
        return await asyncio.to_thread(self._read_patiently, groups, keys)

    def _read_patiently(self, groups: Sequence[Group], keys: Sequence[Sequence[bytes]]) -> list[dict[bytes, LookedUp]]:
        with self._lock:
            if self._patient is None:
                self._patient = self._connect(PATIENCE)
            return self._read(self._patient, groups, keys)

    def _connect(self, timeout: float) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=timeout, check_same_thread=False)

    def _read(self, connection: sqlite3.Connection, groups: Sequence[Group], keys: Sequence[Sequence[bytes]]) -> list[dict[bytes, LookedUp]]:
        found: list[dict[bytes, LookedUp]] = [{} for _ in groups]
        asked = [(rows, view, mine) for rows, group, mine in zip(found, groups, keys, strict=True) if mine for view in group.views]
        if not asked:
            return found
        statement = _statement(tuple((f"{self.project}_{view.stored}", len(mine)) for _, view, mine in asked))
        every = connection.execute(statement, [key for _, _, mine in asked for key in mine])
        wanted = [row for row in every if row[2] in asked[row[0]][1].features]  # others of the view may hold what is no scalar
        for (number, key, feature, _, stored), one in zip(wanted, values([row[3] for row in wanted]), strict=True):
            rows, view, _ = asked[number]
            at = _moment(stored)
            if at is None:
                continue
            row = rows.get(key)
            if row is None:
                row = rows[key] = LookedUp({}, {})
            row.times[view.name] = at
            row.values[feature] = one
        return found


@lru_cache(4096)
def _statement(tables: tuple[tuple[str, int], ...]) -> str:
    selects = []
    for number, (table, count) in enumerate(tables):
        quoted = '"' + table.replace('"', '""') + '"'
        selects.append(f"SELECT {number}, entity_key, feature_name, value, event_ts FROM {quoted} WHERE entity_key IN ({','.join('?' * count)})")
    return " UNION ALL ".join(selects)


@lru_cache(65536)
def _moment(stored: int | str | None) -> datetime | None:
    """Feast's adapters write seconds, of a time without a zone that means UTC; older ones wrote text."""
    if stored is None:
        return None
    at = datetime.fromtimestamp(stored) if isinstance(stored, int) else datetime.fromisoformat(stored)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
