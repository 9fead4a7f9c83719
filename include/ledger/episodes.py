"""Drift episodes. A project has at most one open episode, and each makes one request."""

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from include.ledger.database import transaction
from include.ledger.schema import EPISODES
from include.times import iso


def open_episode(project: str, *, at: datetime | str, evidence: dict[str, Any]) -> str:
    """Return the id of the project's open episode. Open one if there is none.

    The id depends only on project and time.
    """
    current = current_episode(project)
    if current:
        episode: str = current["id"]
        return episode
    episode = hashlib.sha256(f"{project}|{iso(at)}".encode()).hexdigest()[:16]
    try:
        with transaction() as connection:
            connection.execute(insert(EPISODES).values(id=episode, project=project, opened=iso(at), evidence=evidence))
    except IntegrityError:
        # Another process was faster, or an episode opened at this time is already closed.
        current = current_episode(project)
        return current["id"] if current else episode
    return episode


def current_episode(project: str) -> dict[str, Any] | None:
    with transaction() as connection:
        row = (
            connection.execute(select(EPISODES).where(EPISODES.c.project == project, EPISODES.c.closed.is_(None)))
            .mappings()
            .first()
        )
    return dict(row) if row else None


def episodes(project: str) -> list[dict[str, Any]]:
    with transaction() as connection:
        return [
            dict(r)
            for r in connection.execute(
                select(EPISODES).where(EPISODES.c.project == project).order_by(EPISODES.c.opened)
            ).mappings()
        ]


def close_episode(project: str, *, at: datetime | str) -> None:
    with transaction() as connection:
        connection.execute(
            update(EPISODES).where(EPISODES.c.project == project, EPISODES.c.closed.is_(None)).values(closed=iso(at))
        )
