"""Serving writes its prediction log to a bucket in whole files, off the request path.

An unavailable store delays no request, and the log recovers.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from include.data import layout, storage
from include.projects import get_project
from serving.prediction_log.writer import PredictionLog
from serving.settings import Settings
from tests.serving.prediction_log.test_writer import rows
from tests.waiting import wait_for

FLIGHTS = get_project("flights")


@pytest.fixture
def log(s3_store, monkeypatch):
    monkeypatch.setenv("SERVING_LOG_ROOT", s3_store)
    settings = Settings()
    log = PredictionLog(settings.log_root, flush_seconds=0.1, endpoint=settings.s3_endpoint, region=settings.s3_region)
    log.start()
    yield log
    log.close(5)


def files():
    return storage.files(layout.prediction_log(FLIGHTS))


def test_predictions_lie_where_the_loop_looks_for_them(log):
    log.append(rows("a", "b", project="flights"))
    (file,) = wait_for(files, 5)
    assert storage.read_parquet(file).to_pylist() == rows("a", "b", project="flights")
    assert storage.read_parquet(file).schema.metadata[b"prediction_log_version"] == b"3"
    assert wait_for(lambda: log.stats()["written"] == 2, 5) and log.stats()["last_error"] is None


def test_a_store_that_is_away_delays_nobody_and_heals(log, s3):
    s3.server.send_signal(signal.SIGSTOP)
    try:
        began = time.perf_counter()
        log.append(rows("a", project="flights"))
        assert time.perf_counter() - began < 0.05
        time.sleep(0.5)
        assert log.stats()["written"] == 0 and log.stats()["waiting"] == 1
    finally:
        s3.server.send_signal(signal.SIGCONT)
    wait_for(lambda: log.stats()["written"] == 1, 40)
    assert len(files()) == 1


def test_credentials_that_are_refused_are_told_in_the_logs_state(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-one")
    log = PredictionLog(s3_store, flush_seconds=0.1, endpoint=os.environ["AWS_ENDPOINT_URL"], region="us-east-1")
    log.start()
    log.append(rows("a", project="flights"))
    error = wait_for(lambda: log.stats()["last_error"], 20)
    log.close(5)
    assert "ACCESS_DENIED" in error.upper() or "SIGNATURE" in error.upper(), error
    assert "wrong-one" not in error and log.stats()["waiting"] == 1


def test_the_service_needs_nothing_more_for_it(s3_store):
    """The service needs neither pandas nor fsspec: it uses Arrow's own client."""
    script = f"""
import sys
from serving.prediction_log.writer import PredictionLog
from tests.serving.prediction_log.test_writer import rows
log = PredictionLog({s3_store!r}, endpoint={os.environ["AWS_ENDPOINT_URL"]!r}, region="us-east-1")
log.start()
log.append(rows("a"))
log.close()
assert log.stats()["written"] == 1, log.stats()
assert not {{"pandas", "fsspec", "s3fs", "boto3"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
