"""Notices to operators. They are sent to a hook and retried until the hook accepts them.

Each is written in the transaction of the event that it reports. The hook is the setting
``AIRLOOP_NOTIFY``: a function or a URL. A failing hook is logged and does not stop anything.
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

# Attempts to call the hook, one for each sweep. After that the notice remains only in the ledger.
TRIES = 5
TIMEOUT_S = 10
LOG = logging.getLogger(__name__)


def note(project: str, subject: str, text: str) -> None:
    """Record a notice to the operators, once for each subject."""
    try:
        with transaction() as connection:
            add_notice(connection, project, subject, text)
    except IntegrityError:
        pass  # another process has just recorded it


def add_notice(connection: Any, project: str, subject: str, text: str) -> None:
    """Record a notice like ``note``, within a transaction that has begun."""
    where = (NOTICES.c.project == project, NOTICES.c.subject == subject)
    if connection.execute(select(NOTICES.c.subject).where(*where)).first() is None:
        connection.execute(
            insert(NOTICES).values(
                project=project, subject=subject, text=text, recorded_at=stamp(), told_at=None, attempts=0
            )
        )


def notices(project: str) -> list[dict[str, Any]]:
    """Return all notices of a project, oldest first.

    ``told_at`` is None until the hook has accepted the notice.
    """
    with transaction() as connection:
        query = select(NOTICES).where(NOTICES.c.project == project).order_by(NOTICES.c.recorded_at, NOTICES.c.subject)
        return [dict(row) for row in connection.execute(query).mappings()]


def tell(project: str) -> int:
    """Send pending notices to the hook. Return how many it accepted.

    A kill between the hook and the ledger's write causes a duplicate. Each notice is also logged by
    this process, with or without a hook.
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
        # A site's own function may raise anything.
        except Exception as error:
            # Do not log the error's text, which may contain the URL and its key.
            LOG.warning(
                "%s: AIRLOOP_NOTIFY failed (%s), try %d of %d",
                project,
                type(error).__name__,
                changes["attempts"],
                TRIES,
            )
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
