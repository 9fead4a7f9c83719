"""Define the servers of the serving benchmark: their start commands and their requests.

All have one worker and one OpenMP thread.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import serving_model
from bench.load import Figures
from bench.result import REPOSITORY

# The model is fitted and pickled with this version.
SKLEARN = "scikit-learn==1.9.1"
ENVIRONMENTS = {
    "mlserver": ["mlserver==1.7.1", "mlserver-sklearn==1.7.1", SKLEARN],
    "bentoml": ["bentoml==1.4.39", SKLEARN],
}
BENTO = """import bentoml, joblib
import numpy as np

@bentoml.service(workers=1, traffic={"timeout": 60})
class Bench:
    def __init__(self):
        self.model = joblib.load("model.joblib")

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(rows)[:, 1]
"""


@dataclass
class Server:
    """A server: its command, and the path and body of its requests."""

    name: str
    path: str
    body: Callable[[list[float]], dict[str, Any]]
    command: list[str]
    folder: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, core: int | None) -> None:
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
            )

    def wait(self, seconds: float) -> None:
        """Wait until the server answers a prediction request.

        Raises:
            TimeoutError: The server did not answer in time. The message contains the end of its
            log.
        """
        content = json.dumps(self.body(serving_model.samples(1)[0].tolist())).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{self.path}",
            data=content,
            headers={"Content-Type": "application/json", **self.headers},
        )
        deadline, reason = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(request, timeout=10).read()
                return
            except urllib.error.HTTPError as error:
                reason = error.read().decode(errors="replace")[:500]
            except OSError as error:
                reason = str(error)
            time.sleep(0.2)
        raise TimeoutError(
            f"{self.name} does not answer within {seconds:g} s:"
            f" {reason}\n{(self.folder / f'{self.name}.log').read_text()[-2000:]}"
        )

    def cpu(self) -> float:
        """Return the CPU seconds of the server and its child processes."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (parent, *parent.children(recursive=True)))

    def load(
        self,
        core: int | None,
        *,
        seconds: float,
        warm: float,
        clients: int,
        rate: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> Figures:
        """Load the server from a separate process and return the measurements."""
        bodies = [self.body(row) for row in serving_model.samples(200).tolist()]
        plan = {
            "port": self.port,
            "path": self.path,
            "bodies": bodies,
            "seconds": seconds,
            "warm": warm,
            "clients": clients,
            "rate": rate,
            "headers": headers,
        }
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            input=json.dumps(plan).encode(),
            capture_output=True,
            cwd=REPOSITORY,
            check=True,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
        return Figures(**json.loads(done.stdout))

    def end(self) -> None:
        if self.process is None:
            return
        for one in processes(self.process.pid)[1:] if self.process.poll() is None else []:
            one.terminate()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


def processes(pid: int) -> list[psutil.Process]:
    """Return a process and its child processes."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def two_cores() -> tuple[int | None, int | None]:
    """Return one core for a server and one for its load, or None twice on a single core."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


def named(row: list[float]) -> dict[str, Any]:
    return {"instances": [dict(zip(serving_model.FEATURES, row, strict=True))]}


def bare(folder: Path) -> Server:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "bench.bare:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "warning",
    ]
    return Server(
        "bare", "/models/bench/predict", named, command, _made(folder / "bare"), port, {"PYTHONPATH": str(REPOSITORY)}
    )


def airloop(
    folder: Path, model: Any, name: str = "airloop", *, feature_store: str = "", body: Callable = named, **parts: Any
) -> Server:
    """Return the service, started from its cache, so that it does not need a registry.

    It logs its predictions as usual.
    """
    home, port = _made(folder / name), free_port()
    serving_model.write_cache(model, home / "cache", **parts)
    store = (
        feature_store
        or f"{{registry_type: sql, path: 'sqlite:///{home / 'none.db'}'}}\nonline_store: {{type: sqlite, path: none.db}}"  # noqa: E501
    )
    (home / "feature_store.yaml").write_text(
        f"project: bench\nprovider: local\nentity_key_serialization_version: 3\nregistry: {store}\n"
    )
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "SERVING_MLFLOW_URI": "http://127.0.0.1:9",
        "SERVING_CACHE": str(home / "cache"),
        "SERVING_LOG_ROOT": str(home / "log"),
        "SERVING_FEATURE_REPO": str(home),
        "SERVING_POLL_SECONDS": "30",
    }
    command = [sys.executable, "-m", "serving", "--port", str(port)]
    return Server(name, "/models/bench/predict", body, command, home, port, environment)


def mlflow(folder: Path, model: Any) -> Server:
    import mlflow.sklearn

    home, port = _made(folder / "mlflow"), free_port()
    if not (home / "model").exists():
        mlflow.sklearn.save_model(
            model,
            str(home / "model"),
            serialization_format="cloudpickle",
            pyfunc_predict_fn="predict_proba",
            pip_requirements=["scikit-learn"],
        )
    arguments = [
        "models",
        "serve",
        "-m",
        str(home / "model"),
        "--env-manager",
        "local",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return Server(
        "mlflow",
        "/invocations",
        lambda row: {"inputs": [row]},
        [sys.executable, "-m", "mlflow", *arguments],
        home,
        port,
        environment,
    )


def mlserver(folder: Path, model: Any, environments: Path) -> Server:
    home, port = _made(folder / "mlserver"), free_port()
    _dump(model, home)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (home / "settings.json").write_text(json.dumps(settings))
    of_model = {
        "name": "bench",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "v1"},
    }
    (home / "model-settings.json").write_text(json.dumps(of_model))

    def body(row: list[float]) -> dict[str, Any]:
        inputs = [{"name": "predict", "shape": [1, len(row)], "datatype": "FP32", "data": row}]
        return {"inputs": inputs, "outputs": [{"name": "predict_proba"}]}

    return Server(
        "mlserver",
        "/v2/models/bench/infer",
        body,
        [str(_environment("mlserver", environments) / "mlserver"), "start", "."],
        home,
        port,
    )


def bentoml(folder: Path, model: Any, environments: Path) -> Server:
    home, port = _made(folder / "bentoml"), free_port()
    _dump(model, home)
    (home / "service.py").write_text(BENTO)
    binaries = _environment("bentoml", environments)
    environment = {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home / "bentoml"),
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [str(binaries / "bentoml"), "serve", "service:Bench", "--port", str(port), "--host", "127.0.0.1"]
    return Server("bentoml", "/predict", lambda row: {"rows": [row]}, command, home, port, environment)


def feast(folder: Path, feature_store: str, body: Callable[[list[float]], dict[str, Any]]) -> Server:
    """Return Feast's own feature server on the same online store.

    It only looks up features. Its callers still have to call the model.
    """
    home, port = _made(folder / "feast"), free_port()
    (home / "feature_store.yaml").write_text(
        f"project: bench\nprovider: local\nentity_key_serialization_version: 3\nregistry: {feature_store}\n"
    )
    options = [
        "--port",
        str(port),
        "--workers",
        "1",
        "--no-access-log",
        "--max-requests",
        "0",
        "--registry_ttl_sec",
        "600",
    ]
    command = [str(Path(sys.executable).parent / "feast"), "--chdir", str(home), "serve", *options]
    return Server("feast", "/get-online-features", body, command, home, port)


def _environment(name: str, environments: Path) -> Path:
    """Return the folder of a peer's programs.

    The peer has its own environment, because its requirements differ from ours. It is created once.
    """
    target = environments / name
    stamp = target / "made"
    wanted = "\n".join(ENVIRONMENTS[name])
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
        uv = Path(sys.executable).parent / "uv"
        subprocess.run(
            [str(uv), "pip", "install", "--quiet", "--python", str(target / "bin" / "python"), *ENVIRONMENTS[name]],
            check=True,
        )
        stamp.write_text(wanted)
    return target / "bin"


def _dump(model: Any, home: Path) -> None:
    import joblib

    joblib.dump(model, home / "model.joblib")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
