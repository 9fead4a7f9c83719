"""Define the metrics for Prometheus (``GET /metrics``).

Several workers share one folder (``SERVING_METRICS_FOLDER``, created by ``python -m serving``). A
scrape of any worker returns the metrics of all.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported. The service sets it from its
# own variable, because importing feast sets it to feast's folder, for the process and its children.
# All services started from such a process would then count into the same files.
SHARED = os.environ.get("SERVING_METRICS_FOLDER")
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
if SHARED:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = SHARED

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from prometheus_client.metrics_core import Metric  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
AGES = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400)
ANSWERED = ("model", "version", "arm")

PREFIX = "airloop_"
OURS = CollectorRegistry()
requests = Counter("airloop_serving_requests", "Requests, by route and status.", ("route", "status"), registry=OURS)
refused = Counter(
    "airloop_serving_refused", "Rejected requests and shadow calls, by reason.", ("reason",), registry=OURS
)
predictions = Counter("airloop_serving_predictions", "Answered predictions.", ANSWERED, registry=OURS)
prediction_seconds = Histogram(
    "airloop_serving_prediction_seconds",
    "Seconds from the parsed request to its answer.",
    ANSWERED,
    buckets=SECONDS,
    registry=OURS,
)
failures = Counter(
    "airloop_serving_prediction_failures",
    "Instances that made a model raise an error or return something other than a number.",
    ANSWERED,
    registry=OURS,
)
feature_age = Histogram(
    "airloop_serving_feature_age_seconds",
    "Age in seconds of looked-up values when they were used.",
    ("model", "view"),
    buckets=AGES,
    registry=OURS,
)
gaps = Counter(
    "airloop_serving_lookup_gaps",
    "Gaps of feature look-ups, by kind (unknown_entity, stale_feature, missing_feature) and by the action taken.",
    ("model", "view", "kind", "action"),
    registry=OURS,
)
by_baseline = Counter(
    "airloop_serving_baseline_answers",
    "Instances answered by a version's baseline rule.",
    ("model", "version"),
    registry=OURS,
)
faults = Counter(
    "airloop_serving_faults",
    "Internal faults of the service, by place: request, connection or fast-path.",
    ("where",),
    registry=OURS,
)
caller_requests = Counter(
    "airloop_serving_caller_requests",
    "Requests of callers with a key, by status class.",
    ("caller", "outcome"),
    registry=OURS,
)
access_log_dropped = Counter(
    "airloop_serving_access_log_dropped", "Lines of the access log that could not be written.", registry=OURS
)
connections_closed = Counter(
    "airloop_serving_connections_closed",
    "Connections that the service closed or refused, by reason: a slow client or a connection limit.",
    ("reason",),
    registry=OURS,
)
swaps = Counter(
    "airloop_serving_swaps", "New versions, by outcome: swapped, refused or error.", ("model", "outcome"), registry=OURS
)
feedback = Counter("airloop_serving_feedback_labels", "Labels accepted.", ("model",), registry=OURS)
log_rows = Counter(
    "airloop_serving_log_rows", "Predictions for the prediction log, written or dropped.", ("fate",), registry=OURS
)
log_errors = Counter("airloop_serving_log_errors", "Failed attempts to write the prediction log.", registry=OURS)

in_flight = Gauge(
    "airloop_serving_requests_in_flight",
    "Requests that are being answered.",
    registry=OURS,
    multiprocess_mode="livesum",
)
connections_open = Gauge(
    "airloop_serving_connections", "Open client connections.", registry=OURS, multiprocess_mode="livesum"
)
log_waiting = Gauge(
    "airloop_serving_log_waiting",
    "Predictions that wait to be written to the log.",
    registry=OURS,
    multiprocess_mode="livesum",
)
log_lag = Gauge(
    "airloop_serving_log_lag_seconds",
    "Age in seconds of the oldest prediction that is not yet written.",
    registry=OURS,
    multiprocess_mode="livemax",
)
registry_up = Gauge(
    "airloop_serving_registry_up",
    "1 if the model registry answered the last request and this answer is recent.",
    registry=OURS,
    multiprocess_mode="livemin",
)
registry_age = Gauge(
    "airloop_serving_registry_age_seconds",
    "Seconds since the model registry was last read.",
    registry=OURS,
    multiprocess_mode="livemax",
)
rollout_up = Gauge(
    "airloop_serving_rollout_readable",
    "1 if the model's rollout document is applied or does not exist.",
    ("model",),
    registry=OURS,
    multiprocess_mode="livemin",
)
lookup_up = Gauge(
    "airloop_serving_lookup_up", "1 if features can be looked up.", registry=OURS, multiprocess_mode="livemin"
)
model_up = Gauge(
    "airloop_serving_model_up",
    "1 if the wanted version answers, 0 if another version or none answers.",
    ("model",),
    registry=OURS,
    multiprocess_mode="livemin",
)
lost = Gauge(
    "airloop_serving_champion_lost",
    "1 if the registry no longer names a champion, and the last one answers.",
    ("model",),
    registry=OURS,
    multiprocess_mode="livemax",
)
answering = Gauge(
    "airloop_serving_model_answers",
    "1 if this version answers as this arm.",
    ANSWERED,
    registry=OURS,
    multiprocess_mode="livemax",
)


class ModelMetrics:
    """The metrics of one version in one arm. The labels are resolved once."""

    def __init__(self, model: str, version: str, arm: str) -> None:
        self.labels = (model, version, arm)
        self.predictions = predictions.labels(*self.labels)
        self.seconds = prediction_seconds.labels(*self.labels)
        self.failures = failures.labels(*self.labels)
        self._noted: list[float] = []
        self._answered = 0
        self._ages: dict[str, list[float]] = {}

    def note(self, instances: int, took: float) -> None:
        """Record an answered request. ``flush`` adds it to the metrics.

        Updating the metrics for many requests together costs a tenth of updating them per request.
        """
        self._answered += instances
        self._noted.append(took)

    def note_age(self, view: str, seconds: float) -> None:
        """Record the age of a view's values that were used. ``flush`` adds it to the metrics."""
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
        """End the series of a version that is no longer loaded.

        With several workers, the series last until the workers end.
        """
        answering.labels(*self.labels).set(0)
        if not SHARED:
            for metric in (predictions, prediction_seconds, failures, answering):
                metric.remove(*self.labels)


def observe_all(histogram: Histogram, values: list[float]) -> None:
    """Call ``histogram.observe`` for each value, in one pass.

    A test compares both, because this uses private attributes of the library.
    """
    counts = [0] * len(histogram._upper_bounds)
    for value in values:
        counts[bisect_left(histogram._upper_bounds, value)] += 1
    histogram._sum.inc(sum(values))
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)


class GaugeUpdater:
    """Update the gauges from the state of the components, every second and on each scrape."""

    def __init__(self, state: Callable[[], Mapping[str, Any]]) -> None:
        self._state = state
        self._counted = {"written": 0, "dropped": 0, "errors": 0}

    def take(self) -> None:
        state = self._state()
        for model_metrics in state["model_metrics"]:
            model_metrics.flush()
        in_flight.set(state["in_flight"])
        connections_open.set(state["connections"])
        registry_up.set(state["registry"])
        registry_age.set(state["registry_age"])
        for name, readable in state["rollouts"].items():
            rollout_up.labels(name).set(readable)
        lookup_up.set(state["lookup"])
        for name, up in state["models"].items():
            model_up.labels(name).set(up)
        for name, gone in state["lost"].items():
            lost.labels(name).set(gone)
        log = state["log"]
        log_waiting.set(log["waiting"])
        log_lag.set(time.monotonic() - log["oldest"] if log["oldest"] else 0)
        for fate in ("written", "dropped"):
            log_rows.labels(fate).inc(log[fate] - self._counted[fate])
        log_errors.inc(log["errors"] - self._counted["errors"])
        self._counted = {key: log[key] for key in self._counted}


class OldNames:
    """A collector that adds each metric of another one under its name before 0.2.0.

    The prefix was ``serving_``. These names end with 0.3.0.
    """

    def __init__(self, collector: CollectorRegistry) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            yield metric
            if metric.name.startswith(PREFIX):
                old = Metric(metric.name.removeprefix(PREFIX), f"Old name of {metric.name}.", metric.type)
                old.samples = [sample._replace(name=sample.name.removeprefix(PREFIX)) for sample in metric.samples]
                yield old


def exposition() -> tuple[bytes, str]:
    """Return the text for Prometheus, with the metrics of all workers, and its media type."""
    registry = OURS
    if SHARED:
        _forget_the_dead(Path(SHARED))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, SHARED)
    both = CollectorRegistry()
    both.register(OldNames(registry))
    return generate_latest(both), CONTENT_TYPE_LATEST


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of dead workers, which would otherwise be reported forever.

    Their counters remain, because the answers that they count were given.
    """
    for file in folder.glob("gauge_live*.db"):
        process = file.stem.rpartition("_")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            with suppress(FileNotFoundError):  # Another worker was scraped concurrently.
                mark_process_dead(int(process), str(folder))
