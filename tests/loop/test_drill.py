"""Restore drill: a deployment that is lost during a training continues on other stores.

It ran on SQLite and files. It is restored into empty stores on Postgres and Redis elsewhere. This
is also the migration from embedded to compose: models, history and data are carried over, and
nothing else is shared.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from include import ledger
from include.data import layout, tables
from include.demo.replay import Replay, ReplayStep
from include.settings import REPOSITORY, Settings
from include.stack.api import AirflowApi
from tests.homes import forget_home
from tests.loop.harness import BEGIN, FIRST, FLIGHTS, SECOND, STAGES, Silent
from tests.ports import free_port
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(
        not os.environ.get("AIRLOOP_TEST_LOOP_ON_SERVERS"),
        reason="two more whole loops, the second on Postgres and Redis: AIRLOOP_TEST_LOOP_ON_SERVERS=yes",
    ),
]


def enter(settings: Settings, monkeypatch) -> None:
    """Make this process use the deployment's home."""
    for name in [name for name in os.environ if name.startswith(("AIRLOOP_", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(name)
    for name, value in {**settings.environment(), "MLFLOW_TRACKING_URI": settings.mlflow_url}.items():
        monkeypatch.setenv(name, value)
    forget_home()


def airloop(*arguments: str, well: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "include.cli", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (done.returncode == 0) == well, done.stdout + done.stderr
    return done.stdout + done.stderr


def house(home: Path, **more) -> Settings:
    return Settings(
        home=home,
        projects="flights",
        parallelism=3,
        **{f"{name}_port": free_port() for name in ("airflow", "mlflow", "serving")},
        **more,
    )


def predictions(settings: Settings, cutoff: datetime) -> dict:
    """Return serving's answers for some flights, and the model version that gave them."""
    from include.features.known import KnownTables

    due = (
        FLIGHTS.module("features")
        .examples(KnownTables(FLIGHTS, cutoff), since=cutoff, until=cutoff + timedelta(minutes=29), cutoff=cutoff)
        .head(5)
    )
    instances = json.loads(due[[*FLIGHTS.entities, *FLIGHTS.request_features]].to_json(orient="records"))
    deadline = time.monotonic() + 120
    while True:
        answer = httpx.post(
            f"{settings.serving_url}/models/flights/predict", json={"instances": instances}, timeout=30, trust_env=False
        )
        if answer.is_success:
            response = answer.json()
            return {
                "version": response["model_version"],
                "predictions": [p["prediction"] for p in response["predictions"]],
                "times": response["predictions"][0]["feature_times"],
            }
        assert time.monotonic() < deadline, answer.text
        time.sleep(1)


def test_a_lost_house_is_restored_elsewhere_and_the_loop_goes_on(tmp_path, monkeypatch, postgres_server, redis_server):
    old = house(tmp_path / "old")
    enter(old, monkeypatch)
    archive = tmp_path / "backup.zip"
    try:
        airloop("up")
        api = AirflowApi.from_settings(old)
        api.wait_for_dags([f"flights__{stage}" for stage in STAGES], timeout=300)
        records = Replay(FLIGHTS, api, Silent()).run([ReplayStep("history", BEGIN, FIRST, first_model=True)])
        assert records[0].trainings[0]["state"] == "deployed"
        served = predictions(old, FIRST)
        api.trigger("flights__train", {"cutoff": ledger.iso(FIRST), "reason": "in_the_middle"})
        at_work = wait_for(
            lambda: next(
                (r for r in ledger.requests("flights") if r.reason == "in_the_middle" and r.state == "claimed"), None
            ),
            900,
            interval=0.5,
        )
        assert f"in progress, and open again after a restore: request {at_work.id} of flights" in airloop(
            "backup", str(archive)
        )
        history = {
            "files": ledger.count_files("flights"),
            "decisions": ledger.decisions("flights", "gate")[:1],
            "deployed": ledger.requests("flights")[0],
        }
        rows = {
            source.name: tables.open_table(layout.table(FLIGHTS, source.name)).count() for source in FLIGHTS.sources
        }
    finally:
        airloop("down")
    lost = tmp_path / "lost"
    # Nothing is left at the old path.
    (tmp_path / "old").rename(lost)

    urls = postgres_server.urls()
    new = house(
        tmp_path / "new", database_admin_url=postgres_server.admin_url, online_store_url=redis_server.url(), **urls
    )
    enter(new, monkeypatch)
    try:
        airloop("create-databases")
        airloop("migrate")
        brought = ("--data-from", str(lost / "store"), "--artifacts-from", str(lost / "mlflow" / "artifacts"))
        assert "it can be restored" in airloop("restore", str(archive), "--dry-run", *brought)
        output = airloop("restore", str(archive), *brought)
        assert (
            "everything is frozen" in output and f"request {at_work.id} was being worked on; it is open again" in output
        )
        shutil.rmtree(lost)
        airloop("up")
        api = AirflowApi.from_settings(new)
        api.wait_for_dags([f"flights__{stage}" for stage in STAGES], timeout=300)

        # The champion is still served from the new online store, and the history is complete.
        assert predictions(new, FIRST) == served
        assert (
            history["files"] == ledger.count_files("flights") and ledger.requests("flights")[0] == history["deployed"]
        )
        assert ledger.decisions("flights", "gate") == history["decisions"]
        assert rows == {
            source.name: tables.open_table(layout.table(FLIGHTS, source.name)).count() for source in FLIGHTS.sources
        }
        assert "All is well" in airloop("doctor") and "restored from backup.zip" in airloop("status")

        # The thaw resumes the lost training. Then three more days follow.
        airloop("thaw", "--all")
        taken_up = wait_for(lambda: not (r := ledger.get_request(at_work.id)).live and r, 900, interval=0.5)
        assert taken_up.state in {"refused", "deployed"} and taken_up.dag_run.startswith("thawed__")
        (new.home / "demo").mkdir(exist_ok=True)
        more = Replay(FLIGHTS, api, Silent()).run([ReplayStep("three days", FIRST, SECOND)])
        assert more[-1].monitor["labels"] > 1000 and more[-1].serving_asked > 0
    finally:
        airloop("down")
