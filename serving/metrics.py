"""What Prometheus is told (``GET /metrics``).

Several workers share one folder (``SERVING_METRICS_FOLDER``, which ``python -m serving`` makes): whichever of them is scraped tells of all.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# prometheus_client reads its variable when it is imported. A variable of ours decides what is in it: importing feast puts a folder of feast's there, for
# its process and all children, and every service that one of those starts would count into the same files.
SHARED = os.environ.get("SERVING_METRICS_FOLDER")
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
if SHARED:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = SHARED

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
AGES = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400)
ANSWERED = ("model", "version", "arm")

OURS = CollectorRegistry()
requests = Counter("serving_requests", "Requests, by route and status.", ("route", "status"), registry=OURS)
refused = Counter("serving_refused", "Requests turned away before they were read.", ("reason",), registry=OURS)
predictions = Counter("serving_predictions", "Answered predictions.", ANSWERED, registry=OURS)
prediction_seconds = Histogram("serving_prediction_seconds", "From the parsed request to its answer.", ANSWERED, buckets=SECONDS, registry=OURS)
failures = Counter("serving_prediction_failures", "Instances that a model did not answer: it raised an error, or gave no number.", ANSWERED, registry=OURS)
feature_age = Histogram("serving_feature_age_seconds", "Age of looked-up values when they were used.", ("model", "view"), buckets=AGES, registry=OURS)
gaps = Counter(
    "serving_lookup_gaps", "What look-ups lacked, by kind (unknown_entity, stale_feature, missing_feature) and by what was done about it.",
    ("model", "view", "kind", "action"), registry=OURS,
)  # fmt: skip
by_baseline = Counter("serving_baseline_answers", "Instances that a version's baseline rule answered.", ("model", "version"), registry=OURS)
faults = Counter("serving_faults", "Faults of the service itself, by where: request, connection or fast-path.", ("where",), registry=OURS)
caller_requests = Counter(
    "serving_caller_requests", "Requests of callers with a key, by class of status.", ("caller", "outcome"), registry=OURS,
)  # fmt: skip
access_log_dropped = Counter("serving_access_log_dropped", "Lines of the access log that could not be written.", registry=OURS)
connections_closed = Counter(
    "serving_connections_closed", "Connections that the service closed or refused, by why: slow, or no room for more.", ("reason",), registry=OURS,
)  # fmt: skip
swaps = Counter("serving_swaps", "New versions, by what became of them: swapped, refused or error.", ("model", "outcome"), registry=OURS)
feedback = Counter("serving_feedback_labels", "Labels taken.", ("model",), registry=OURS)
log_rows = Counter("serving_log_rows", "Predictions of the log: written, or dropped.", ("fate",), registry=OURS)
log_errors = Counter("serving_log_errors", "Failed tries to write the prediction log.", registry=OURS)

in_flight = Gauge("serving_requests_in_flight", "Requests that are being answered.", registry=OURS, multiprocess_mode="livesum")
connections_open = Gauge("serving_connections", "Open connections of clients.", registry=OURS, multiprocess_mode="livesum")
log_waiting = Gauge("serving_log_waiting", "Predictions that wait to be written.", registry=OURS, multiprocess_mode="livesum")
log_lag = Gauge("serving_log_lag_seconds", "Age of the oldest prediction that is not written.", registry=OURS, multiprocess_mode="livemax")
registry_up = Gauge(
    "serving_registry_up", "1: the model registry answered when it was last asked, and that is not too long ago.", registry=OURS, multiprocess_mode="livemin"
)
registry_age = Gauge("serving_registry_age_seconds", "Since the model registry was last read.", registry=OURS, multiprocess_mode="livemax")
rollout_up = Gauge(
    "serving_rollout_readable", "1: the model's rollout document is followed, or there is none.", ("model",), registry=OURS, multiprocess_mode="livemin",
)  # fmt: skip
lookup_up = Gauge("serving_lookup_up", "1: features can be looked up.", registry=OURS, multiprocess_mode="livemin")
model_up = Gauge("serving_model_up", "1: the wanted version answers; 0: another one, or none, does.", ("model",), registry=OURS, multiprocess_mode="livemin")
lost = Gauge(
    "serving_champion_lost", "1: the registry names no champion any more, so the last one answers.", ("model",), registry=OURS, multiprocess_mode="livemax",
)  # fmt: skip
answering = Gauge("serving_model_answers", "1: this version answers, as this arm.", ANSWERED, registry=OURS, multiprocess_mode="livemax")


class Meters:
    """The metrics of one version in one arm, looked up once."""

    def __init__(self, model: str, version: str, arm: str) -> None:
        self.labels = (model, version, arm)
        self.predictions = predictions.labels(*self.labels)
        self.seconds = prediction_seconds.labels(*self.labels)
        self.failures = failures.labels(*self.labels)
        self._noted: list[float] = []
        self._answered = 0
        self._ages: dict[str, list[float]] = {}

    def note(self, instances: int, took: float) -> None:
        """A request was answered. Noted only: it is counted with others, by ``flush``, which costs a tenth of counting each."""
        self._answered += instances
        self._noted.append(took)

    def note_age(self, view: str, seconds: float) -> None:
        """Values of a view were used that are so old. Counted by ``flush``, too."""
        self._ages.setdefault(view, []).append(seconds)

    def flush(self) -> None:
        ages, self._ages = self._ages, {}
        for view, seconds in ages.items():
            observe_all(feature_age.labels(self.labels[0], view), seconds)
        noted, self._noted, answered, self._answered = self._noted, [], self._answered, 0
        if noted:
            self.predictions.inc(answered)
            observe_all(self.seconds, noted)

    def forget(self) -> None:
        """The version has gone: its series end here (several workers' last until they end)."""
        answering.labels(*self.labels).set(0)
        if not SHARED:
            for metric in (predictions, prediction_seconds, failures, answering):
                metric.remove(*self.labels)


def observe_all(histogram: Histogram, values: list[float]) -> None:
    """``histogram.observe`` of each value, at once. A test holds the two to each other: this uses the library's insides."""
    counts = [0] * len(histogram._upper_bounds)
    for value in values:
        counts[bisect_left(histogram._upper_bounds, value)] += 1
    histogram._sum.inc(sum(values))
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)


class Pulse:
    """Gauges, from what the parts say of themselves; taken every second, and when somebody scrapes."""

    def __init__(self, parts: Callable[[], Mapping[str, Any]]) -> None:
        self._parts = parts
        self._counted = {"written": 0, "dropped": 0, "errors": 0}

    def take(self) -> None:
        parts = self._parts()
        for meters in parts["meters"]:
            meters.flush()
        in_flight.set(parts["in_flight"])
        connections_open.set(parts["connections"])
        registry_up.set(parts["registry"])
        registry_age.set(parts["registry_age"])
        for name, readable in parts["rollouts"].items():
            rollout_up.labels(name).set(readable)
        lookup_up.set(parts["lookup"])
        for name, up in parts["models"].items():
            model_up.labels(name).set(up)
        for name, gone in parts["lost"].items():
            lost.labels(name).set(gone)
        log = parts["log"]
        log_waiting.set(log["waiting"])
        log_lag.set(time.monotonic() - log["oldest"] if log["oldest"] else 0)
        for fate in ("written", "dropped"):
            log_rows.labels(fate).inc(log[fate] - self._counted[fate])
        log_errors.inc(log["errors"] - self._counted["errors"])
        self._counted = {key: log[key] for key in self._counted}


def exposition() -> tuple[bytes, str]:
    """The text for Prometheus, of all workers, and its media type."""
    registry = OURS
    if SHARED:
        _forget_the_dead(Path(SHARED))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, SHARED)
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _forget_the_dead(folder: Path) -> None:
    """A killed worker's gauges would be told for ever; its counters stay, since what it answered was answered."""
    for file in folder.glob("gauge_live*.db"):
        process = file.stem.rpartition("_")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            with suppress(FileNotFoundError):  # another worker was scraped at the same moment
                mark_process_dead(int(process), str(folder))
