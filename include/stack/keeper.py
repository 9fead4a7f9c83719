"""Restart dead processes of the embedded stack, with back-off, and limit its log files.

    python -m include.stack.keeper

`airloop up` starts it, and `airloop down` stops it with the others. On a server, systemd does the
same: `airloop up --systemd`.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from include.settings import REPOSITORY, Settings, get_settings
from include.stack import lifecycle
from include.stack.processes import ProcessBook
from include.stack.services import KEEPER

LOOK_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
# A process that lived this long starts again with the first pause.
SETTLED_S = 600.0
LOG_BYTES, OLD_LOGS = 20 * 2**20, 3

log = logging.getLogger(__name__)


@dataclass
class Death:
    """The deaths of a service.

    Attributes:
        times: Number of deaths in quick succession.
        due: When the service is started again, in seconds of the keeper's clock.
    """

    times: int = 0
    due: float | None = None


class Keeper:
    """Monitor the processes of one home.

    Args:
        clock: Returns seconds since 1970, like the start times of processes.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._book = ProcessBook(settings.home, REPOSITORY)
        self._deaths: dict[str, Death] = {}

    def look(self) -> list[str]:
        """Restart dead processes that are due, and return their names.

        Does nothing while `airloop up` or `down` runs.
        """
        self._book.reap()
        dead = [
            record
            for name, record in self._book.records().items()
            if record.process() is None and name not in (lifecycle.MIGRATE, KEEPER)
        ]
        due = [record.name for record in dead if self._is_due(record.name, record.started)]
        if not due:
            return []
        with lifecycle.at_once(self._settings) as free:
            if not free:
                return []
            records = self._book.records()
            commands = {service.name: service.command for service in lifecycle.services(self._settings)}
            restarted = []
            for name in due:
                record = records.get(name)
                # `airloop up` or `down` was faster.
                if record is None or record.process() is not None or name not in commands:
                    self._deaths.pop(name, None)
                    continue
                # Remaining processes of the service would hold its port and its locks. The record
                # stays until the new one replaces it. If the start fails, or the keeper is killed
                # here, the service is then still recorded as dead and not forgotten.
                self._book.stop([record], forget=False)
                again = self._book.start(commands[name], restarts=record.restarts + 1)
                self._deaths[name].due = None
                log.warning(
                    "%s died (pid %s): restarted as pid %s, restart %s", name, record.pid, again.pid, again.restarts
                )
                restarted.append(name)
            return restarted

    def _is_due(self, name: str, started: float) -> bool:
        """Return whether the pause after this death is over.

        The pause doubles with each death soon after a start.
        """
        death = self._deaths.setdefault(name, Death())
        now = self._clock()
        if death.due is None:
            death.times = 1 if now - started > SETTLED_S else death.times + 1
            death.due = now + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(death.times - 1, 20))
        return now >= death.due


def rotate(logs: Path, most: int = LOG_BYTES, keep: int = OLD_LOGS) -> list[str]:
    """Rotate each log file of more than ``most`` bytes. Return the names.

    The file is copied to ``<name>.1`` and emptied.

    A service keeps its file open and appends to it, so the file must stay. Lines written between
    the copy and the truncation are lost.
    """
    rotated = []
    for file in sorted(logs.glob("*.log")):
        if file.stat().st_size <= most:
            continue
        for number in range(keep - 1, 0, -1):
            older = file.with_name(f"{file.name}.{number}")
            if older.exists():
                older.replace(file.with_name(f"{file.name}.{number + 1}"))
        shutil.copy2(file, file.with_name(f"{file.name}.1"))
        with file.open("r+b") as emptied:
            emptied.truncate(0)
        rotated.append(file.name)
    return rotated


def main() -> None:
    """Check every two seconds until the process is stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    settings = get_settings()
    keeper = Keeper(settings)
    while True:
        for work in (keeper.look, lambda: rotate(settings.home / "logs")):
            try:
                work()
            # For example a full disk, or a process that does not end. The next round may succeed.
            except Exception:
                log.exception("this look failed")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
