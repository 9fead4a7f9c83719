"""Which installation this is. Two of them on one machine have the same default ports, so that a command of one may reach the other's servers."""

import uuid

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from include.ledger.database import LedgerError, transaction
from include.ledger.schema import INSTALLATION
from include.settings import get_settings
from include.times import stamp

KEY = "this"
# Of this process's ledgers; an id never changes.
_known: dict[str, str] = {}


def installation() -> str:
    """Return the id of the installation that the ledger belongs to; the first call makes it up. A restored backup brings its own."""
    url = get_settings().ledger
    if url not in _known:
        _known[url] = _read() or _made()
    return _known[url]


def known_installation() -> str | None:
    """Return the id; None: the ledger cannot be read. Then nobody is refused, since the way back must work without the ledger too."""
    try:
        return installation()
    except (SQLAlchemyError, LedgerError):
        return None


def _read() -> str | None:
    with transaction() as connection:
        found: str | None = connection.execute(select(INSTALLATION.c.id)).scalar()
    return found


def _made() -> str:
    try:
        with transaction() as connection:
            connection.execute(insert(INSTALLATION).values(key=KEY, id=str(uuid.uuid4()), recorded_at=stamp()))
    except IntegrityError:
        pass  # another process was faster
    made = _read()
    assert made is not None
    return made
