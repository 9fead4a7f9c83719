"""Manage processes that outlive the command that started them.

They are started in their own session, recorded on disk, found again, and stopped as a whole.

A service is more than the process that was started: workers are forked, tasks create their own
process groups, and the children of a killed parent are adopted by init. Therefore a process belongs
to a service if any of these conditions holds:

- It descends from the recorded process.
- It is in that process's session.
- Its environment contains ``AIRLOOP_STACK_MEMBER`` (inherited by fork and exec).

A process id alone is never trusted. The start time must match too, because ids are reused.
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
    """A command to start: the argument list and the whole environment."""

    name: str
    arguments: list[str]
    environment: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Record:
    """A process that we started, as written to ``<home>/run/<name>.json``.

    Attributes:
        started: The kernel's start time, in seconds since 1970.
        restarts: Number of restarts after the service died, since `airloop up`.
    """

    name: str
    pid: int
    started: float
    log: str
    restarts: int = 0

    def process(self) -> psutil.Process | None:
        """Return the recorded process, or None if it has ended.

        A zombie does not count as running. Neither does another process that got the id.
        """
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None

    def owns_id(self) -> bool:
        """Return whether the id, and so the session of that id, still belongs to this record.

        The kernel does not reuse an id as long as a session of that id has a member.
        """
        try:
            same: bool = abs(psutil.Process(self.pid).create_time() - self.started) < 1
            return same
        except psutil.NoSuchProcess:
            return True


class ProcessBook:
    """The processes of one home."""

    def __init__(self, home: Path, cwd: Path):
        self._home, self._cwd = home, cwd
        self._run, self._logs = home / "run", home / "logs"
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, command: Command, restarts: int = 0) -> Record:
        """Start the command in its own session and write a record of it.

        Its output is appended to ``<home>/logs/<name>.log``.
        """
        for folder in (self._run, self._logs):
            # Logs and command lines are private.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        """Return the exit status of a process that this object started, or None while it runs."""
        return self._children[record.pid].poll()

    def reap(self) -> None:
        """Release ended processes that this object started. Otherwise they stay as zombies."""
        for pid in [pid for pid, child in self._children.items() if child.poll() is not None]:
            del self._children[pid]

    def records(self) -> dict[str, Record]:
        """Return the records of processes that we started and have not stopped, by name.

        A recorded process may have ended.
        """
        records = (Record(**json.loads(file.read_text())) for file in sorted(self._run.glob("*.json")))
        return {record.name: record for record in records}

    def members(self, record: Record) -> list[psutil.Process]:
        """Return all running processes that belong to the record, including its own process."""
        leader = record.process()
        session = record.pid if record.owns_id() else None
        members = {leader, *leader.children(recursive=True)} if leader else set()
        for process in psutil.process_iter():
            in_session = session is not None and _session(process) == session
            if process.pid != os.getpid() and (
                in_session or _environment(process).get(MEMBER) == self._member(record.name)
            ):
                members.add(process)
        return [process for process in members if _alive(process)]

    def stop(self, records: list[Record], patience: float = 5.0, *, forget: bool = True) -> list[psutil.Process]:
        """Stop the records' processes: first SIGTERM, and SIGKILL after ``patience`` seconds.

        Args:
            forget: Remove the records too. Otherwise they stay, as for processes that died.

        Returns:
            The processes that had to be killed.
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
    """Return the end of a log file."""
    try:
        return "\n".join(Path(log).read_text(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        runs: bool = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return runs
    except psutil.NoSuchProcess:
        return False


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        environment: dict[str, str] = process.environ()
        return environment
    except (psutil.Error, OSError):
        # The process belongs to another user, or it has ended.
        return {}
