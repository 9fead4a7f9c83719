"""Provide the homes of ``bench_loop``, with separate ports, and its warm interpreter."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deltalake
import httpx
import psutil

from bench import result
from bench.loop_steps import PROJECT
from include.settings import Settings
from include.stack.environment import base_environment
from include.stack.processes import ProcessBook
from include.stack.services import services


class Home:
    """One of the three homes: its settings, its environment, its MLflow and serving."""

    def __init__(self, root: Path, name: str):
        ports = dict(zip(("airflow_port", "mlflow_port", "serving_port"), free_ports(3), strict=True))
        self.name, self.settings = name, Settings(home=(root / name).resolve(), projects=PROJECT, **ports)
        self.environment = base_environment(self.settings) | {"MLFLOW_TRACKING_URI": self.settings.mlflow_url}
        self.book = ProcessBook(self.settings.home, result.REPOSITORY)

    def start_without_airflow(self) -> None:
        wanted = [service for service in services(self.settings) if service.name in ("mlflow", "serving")]
        self.settings.home.mkdir(parents=True, exist_ok=True)
        started = [(service, self.book.start(service.command)) for service in wanted]
        deadline = time.monotonic() + 180
        for service, record in started:
            while not _answers(service, record):
                if time.monotonic() > deadline or self.book.exit_status(record) is not None:
                    raise RuntimeError(f"{service.name} of {self.name} does not answer; its log: {record.log}")
                time.sleep(0.5)

    def run(self, *arguments: str) -> None:
        """Run a command line in a new interpreter.

        Raises:
            RuntimeError: The command failed. The message contains the end of its output.
        """
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, cwd=result.REPOSITORY, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(
                f"{self.name}: {' '.join(arguments)[:200]} failed:\n{(done.stdout + done.stderr)[-3000:]}"
            )

    def stop(self) -> None:
        self.book.stop(list(self.book.records().values()))

    def fingerprint(self) -> tuple:
        """Return a summary of the output of the passes.

        It is equal in all homes if they did the same work.
        """
        store = Path(self.settings.store) / PROJECT
        folders = [log.parent for kind in ("tables", "features") for log in sorted((store / kind).glob("*/_delta_log"))]
        rows = {folder.name: deltalake.DeltaTable(str(folder)).to_pyarrow_dataset().count_rows() for folder in folders}
        # The first pass makes the first model only after the scoring steps, so it has no
        # predictions.
        if not deltalake.DeltaTable.is_deltatable(str(store / "predictions")):
            return 0, 0.0, [], rows
        scores = deltalake.DeltaTable(str(store / "predictions")).to_pandas()
        return len(scores), round(float(scores["prediction"].sum()), 2), sorted(scores["model_version"].unique()), rows


class Warm:
    """One interpreter with all imports, which runs all steps of a given state."""

    def __init__(self, home: Home, log: Path):
        self._log = log.open("w")
        command = [sys.executable, "-m", "bench.loop_steps", "worker"]
        self._process = subprocess.Popen(
            command,
            env=home.environment,
            cwd=result.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._read()

    def run(self, state: dict) -> dict:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(state) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        """Kill the interpreter.

        All its work is finished, so nothing is lost. A normal end would wait for threads of
        libraries.
        """
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the warm interpreter ended:\n{Path(self._log.name).read_text()[-3000:]}")
        return line


@contextmanager
def halted(home: Home) -> Iterator[None]:
    """Suspend Airflow's processes during the block."""
    processes = {
        p
        for name, record in home.book.records().items()
        if name not in ("mlflow", "serving")
        for p in home.book.members(record)
    }
    _signal(processes, psutil.Process.suspend)
    try:
        yield
    finally:
        _signal(processes, psutil.Process.resume)


def _signal(processes: set[psutil.Process], what) -> None:
    for process in processes:
        try:
            what(process)
        except psutil.NoSuchProcess:
            continue


def free_ports(count: int) -> list[int]:
    """Return ports that the kernel reports as free."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _answers(service, record) -> bool:
    try:
        return service.answers(record)
    except httpx.HTTPError:
        return False
