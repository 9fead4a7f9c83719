"""A service that follows the rollout document, and a prediction log, for tests of rollouts."""

import itertools
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from include.data import layout
from include.projects.base import Project
from include.registry import versions

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
NUMBERS = itertools.count()
SCHEMA = pa.schema([
    ("prediction_id", pa.string()), ("model_version", pa.string()), ("arm", pa.string()), ("failed_arm", pa.string()),
    ("predicted_at", pa.timestamp("us", tz="UTC")), ("key", pa.string()), ("prediction", pa.float64()),
    ("caller", pa.string()), ("latency_ms", pa.float64()),
])  # fmt: skip


class Clock:
    """The wall clock of a test."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time) -> None:
        self.now += timedelta(**time)


class Follower:
    """A service that reports over HTTP the state of a model, as serving does.

    The state comes from the registry's own tags. ``states`` and ``down`` override it.
    """

    def __init__(self, project: Project) -> None:
        self.states: dict[str, tuple[str, str]] = {}
        follower = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(follower.says(project)).encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_port

    def says(self, project: Project) -> dict:
        traffic = json.loads(versions.model_tag(project, "rollout") or "{}").get("traffic") or {}
        arms = []
        for entry in (*traffic.get("arms", []), *traffic.get("shadows", [])):
            state, error = self.states.get(entry["name"], ("ready", ""))
            arms.append({**entry, "state": state, "error": error or None})
        return {
            "name": project.name,
            "version": versions.aliases(project).get("champion"),
            "state": "ready",
            "error": None,
            "arms": arms,
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def answered(
    project: Project, arm: str, version: str, rows: int, at: datetime, *, failed_arm: str = "", latency: float = 5.0, shift: float = 0.0,  # noqa: E501
    ids: list | None = None, seed: int = 0, shadow: bool = False,
) -> list[str]:  # fmt: skip
    """Write answers to the log and return their ids.

    They are a millisecond apart, each of a new entity, and all before ``at``.
    """
    generator = np.random.default_rng(seed)
    ids = ids or [f"{next(NUMBERS):032x}" for _ in range(rows)]
    key = [json.dumps({name: f"{name}-{next(NUMBERS)}" for name in project.entities}) for _ in ids]
    # No two requests have the same microsecond.
    own = next(NUMBERS) % 1000
    times = [at - timedelta(milliseconds=number + 1, microseconds=own) for number in range(len(ids))]
    columns = {
        "prediction_id": ids,
        "model_version": [version] * len(ids),
        "arm": [arm] * len(ids),
        "failed_arm": [failed_arm] * len(ids),
        "predicted_at": times,
        "key": key,
        "prediction": generator.beta(2, 5, len(ids)) + shift,
        "caller": ["-"] * len(ids),
        "latency_ms": generator.gamma(4, latency / 4, len(ids)),
    }
    folder = (layout.shadow_log if shadow else layout.prediction_log)(project)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(columns, schema=SCHEMA), str(folder / f"{at:%Y%m%dT%H%M%S.%fZ}-host-1-{next(NUMBERS)}.parquet")
    )
    return ids
