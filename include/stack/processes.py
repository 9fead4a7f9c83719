"""Processes that outlive the command that started them: begun in their own session, remembered on disk, found again, ended whole.

A service is more than the process that was started: workers are forked, tasks put themselves into process groups of their own, and
a killed parent leaves its children to init. What belongs to a service is therefore told by any of three marks: it descends from the
recorded process, it is in that process's session, or it carries ``AIRLOOP_STACK_MEMBER`` in its environment (handed down by fork and exec).
A process id alone is never trusted: the start time must match too, as ids are used again.
"""

import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

MEMBER = "AIRLOOP_STACK_MEMBER"


@dataclass(frozen=True)
class Command:
    """What to start: argument list and the whole environment."""

    name: str
    arguments: list[str]
    environment: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Record:
    """A process that we started, as written to ``<home>/run/<name>.json``.

    Attributes:
        started: the kernel's start time, in seconds since 1970.
        restarts: how often the service died and was restarted since `airloop up`.
    """

    name: str
    pid: int
    started: float
    log: str
    restarts: int = 0

    def process(self) -> psutil.Process | None:
        """The recorded process if it lives; a zombie, or another one that got its id, does not count."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None

    def owns_id(self) -> bool:
        """Whether the id, and so the session of that id, is still this record's: nobody else got it.

        The kernel gives an id to nobody as long as a session of that id has a member.
        """
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return True


class ProcessBook:
    """The processes of one home."""

    def __init__(self, home: Path, cwd: Path):
        self._home, self._cwd = home, cwd
        self._run, self._logs = home / "run", home / "logs"
        self._children: dict[int, subprocess.Popen] = {}

    def start(self, command: Command, restarts: int = 0) -> Record:
        """Starts the command in a session of its own, its output appended to ``<home>/logs/<name>.log``, and writes down who it is."""
        for folder in (self._run, self._logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # logs and command lines are nobody else's business
        log = self._logs / f"{command.name}.log"
        with log.open("ab") as output:
            child = subprocess.Popen(
                command.arguments,
                env=command.environment | {MEMBER: self._member(command.name)},
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        record = Record(command.name, child.pid, psutil.Process(child.pid).create_time(), str(log), restarts)
        self._write(record)
        return record

    def exit_status(self, record: Record) -> int | None:
        """Exit status of a process that this very object started, once it has ended."""
        return self._children[record.pid].poll()

    def reap(self) -> None:
        """Let go of processes that this very object started and that have ended: else each stays as a zombie."""
        for pid in [pid for pid, child in self._children.items() if child.poll() is not None]:
            del self._children[pid]

    def records(self) -> dict[str, Record]:
        """What was started and not yet ended by us, by name; whether it still lives is another question."""
        found = (Record(**json.loads(file.read_text())) for file in sorted(self._run.glob("*.json")))
        return {record.name: record for record in found}

    def members(self, record: Record) -> list[psutil.Process]:
        """Every living process that belongs to the record, its own one included."""
        leader = record.process()
        session = record.pid if record.owns_id() else None
        found = {leader, *leader.children(recursive=True)} if leader else set()
        for process in psutil.process_iter():
            in_session = session is not None and _session(process) == session
            if process.pid != os.getpid() and (in_session or _environment(process).get(MEMBER) == self._member(record.name)):
                found.add(process)
        return [process for process in found if _alive(process)]

    def stop(self, records: list[Record], patience: float = 5.0, *, forget: bool = True) -> list[psutil.Process]:
        """Ends the records' processes, asking first (SIGTERM) and insisting after ``patience`` seconds (SIGKILL).

        Args:
            forget: remove the records too. Without it they stay, as those of processes that died.

        Returns:
            the processes that had to be killed.
        """
        deadline = time.monotonic() + patience
        asked: set[psutil.Process] = set()
        killed: set[psutil.Process] = set()
        while living := {process for record in records for process in self.members(record)}:
            late = time.monotonic() > deadline
            for process in living - asked if not late else living:
                try:
                    process.kill() if late else process.terminate()
                except psutil.NoSuchProcess:
                    continue
                (killed if late else asked).add(process)
            if late and time.monotonic() > deadline + 20:
                raise RuntimeError(f"processes that do not end: {sorted(p.pid for p in living)}")
            psutil.wait_procs(living, timeout=0.3)
        for record in records if forget else ():
            (self._run / f"{record.name}.json").unlink(missing_ok=True)
        return sorted(killed, key=lambda process: process.pid)

    def _member(self, name: str) -> str:
        return f"{self._home}:{name}"

    def _write(self, record: Record) -> None:
        file = self._run / f"{record.name}.json"
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(record)))
        draft.replace(file)


def last_lines(log: str | Path, count: int = 20) -> str:
    """The end of a log file."""
    try:
        return "\n".join(Path(log).read_text(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}  # another user's, or gone
