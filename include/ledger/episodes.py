"""Drift episodes: at most one is open for a project, and asks once."""

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from include.ledger.database import transaction
from include.ledger.schema import EPISODES
from include.times import iso


def open_episode(project: str, *, at: datetime | str, evidence: dict[str, Any]) -> str:
    """The project's open episode; a new one if there is none. Its id depends on project and time only."""
    current = current_episode(project)
    if current:
        return current["id"]
    episode = hashlib.sha256(f"{project}|{iso(at)}".encode()).hexdigest()[:16]
    try:
        with transaction() as connection:
            connection.execute(insert(EPISODES).values(id=episode, project=project, opened=iso(at), evidence=evidence))
    except IntegrityError:
        current = current_episode(project)  # somebody was faster, or it was opened at this time and is closed already
        return current["id"] if current else episode
    return episode


def current_episode(project: str) -> dict[str, Any] | None:
    with transaction() as connection:
        row = connection.execute(select(EPISODES).where(EPISODES.c.project == project, EPISODES.c.closed.is_(None))).mappings().first()
    return dict(row) if row else None


def episodes(project: str) -> list[dict[str, Any]]:
    with transaction() as connection:
        return [dict(r) for r in connection.execute(select(EPISODES).where(EPISODES.c.project == project).order_by(EPISODES.c.opened)).mappings()]


def close_episode(project: str, *, at: datetime | str) -> None:
    with transaction() as connection:
        connection.execute(update(EPISODES).where(EPISODES.c.project == project, EPISODES.c.closed.is_(None)).values(closed=iso(at)))
