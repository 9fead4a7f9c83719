"""What people must be told: written in the transaction of what it is about, told afterwards, and again until the hook has taken it.

The hook is the setting ``AIRLOOP_NOTIFY``: a function or an address. A hook that fails is logged and stops nothing.
"""

import json
import logging
import urllib.request
from importlib import import_module
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from include.ledger.database import transaction
from include.ledger.schema import NOTICES
from include.settings import get_settings
from include.times import stamp

TRIES = 5  # of the hook, one a sweep; then the notice stays in the ledger alone
TIMEOUT_S = 10
LOG = logging.getLogger(__name__)


def note(project: str, subject: str, text: str) -> None:
    """Write down what people must be told; about one subject once."""
    try:
        with transaction() as connection:
            add_notice(connection, project, subject, text)
    except IntegrityError:
        pass  # noted by somebody else at this moment


def add_notice(connection: Any, project: str, subject: str, text: str) -> None:
    """As ``note``, within a transaction that has begun."""
    where = (NOTICES.c.project == project, NOTICES.c.subject == subject)
    if connection.execute(select(NOTICES.c.subject).where(*where)).first() is None:
        connection.execute(insert(NOTICES).values(project=project, subject=subject, text=text, recorded_at=stamp(), told_at=None, attempts=0))


def notices(project: str) -> list[dict[str, Any]]:
    """All of a project, oldest first; ``told_at`` is None as long as the hook has not taken one."""
    with transaction() as connection:
        query = select(NOTICES).where(NOTICES.c.project == project).order_by(NOTICES.c.recorded_at, NOTICES.c.subject)
        return [dict(row) for row in connection.execute(query).mappings()]


def tell(project: str) -> int:
    """Hand what was not told yet to the hook; gives how many it took. Killed after the hook and before the ledger, it tells one twice.

    Each also goes to this process's log, whether there is a hook or not.
    """
    hook, taken = get_settings().notify, 0
    for notice in notices(project):
        if notice["told_at"] or notice["attempts"] >= TRIES:
            continue
        LOG.warning("%s: %s", project, notice["text"])
        changes: dict[str, Any] = {"attempts": notice["attempts"] + 1}
        try:
            if hook:
                _call(hook, {name: notice[name] for name in ("project", "subject", "text", "recorded_at")})
            changes["told_at"] = stamp()
            taken += 1
        except Exception as error:  # whatever a site's own function raises
            # Without the text of the error, which may hold the address and the key in it.
            LOG.warning("%s: AIRLOOP_NOTIFY failed (%s), try %d of %d", project, type(error).__name__, changes["attempts"], TRIES)
        with transaction() as connection:
            where = (NOTICES.c.project == project, NOTICES.c.subject == notice["subject"])
            connection.execute(update(NOTICES).where(*where).values(**changes))
    return taken


def _call(hook: str, notice: dict[str, Any]) -> None:
    if hook.startswith(("http://", "https://")):
        body = json.dumps(notice).encode()
        request = urllib.request.Request(hook, data=body, headers={"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
        return
    module, _, function = hook.partition(":")
    getattr(import_module(module), function)(notice)
