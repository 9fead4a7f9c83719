"""Identify the installation.

Two installations on one machine have the same default ports, so a command can reach the servers of
the other one.
"""

import uuid

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from include.ledger.database import LedgerError, transaction
from include.ledger.schema import INSTALLATION
from include.settings import get_settings
from include.times import stamp

KEY = "this"
# Ledger URL -> id. An id never changes.
_known: dict[str, str] = {}


def installation() -> str:
    """Return the id of the installation that the ledger belongs to.

    The first call creates it. A restored backup contains it.
    """
    url = get_settings().ledger
    if url not in _known:
        _known[url] = _read() or _made()
    return _known[url]


def known_installation() -> str | None:
    """Return the id, or None if the ledger cannot be read.

    Then no check is made, because a rollback must also work without the ledger.
    """
    try:
        return installation()
    except (SQLAlchemyError, LedgerError):
        return None


def _read() -> str | None:
    with transaction() as connection:
        installation: str | None = connection.execute(select(INSTALLATION.c.id)).scalar()
    return installation


def _made() -> str:
    try:
        with transaction() as connection:
            connection.execute(insert(INSTALLATION).values(key=KEY, id=str(uuid.uuid4()), recorded_at=stamp()))
    except IntegrityError:
        pass  # another process was faster
    made = _read()
    assert made is not None
    return made
