"""Reports of `airloop doctor` and `airloop status <project>`.

They cover requests, drift, runs, backups and damaged files.
"""

import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from include import ledger, times
from include.cli import app
from include.operations import backup, project_status
from include.operations.doctor import stores, work
from include.settings import get_settings
from include.stack.runs import FailedRun, Runs
from tests.unit.monitoring.conftest import own_store  # noqa: F401

CUTOFF = "2013-05-01T10:00:00Z"
WELL = Runs((), (), (), (), {})
pytestmark = pytest.mark.usefixtures("own_store")


def states(findings):
    return [(one.name, one.state) for one in findings]


@pytest.fixture
def later(monkeypatch):
    """Advance the clock by days."""
    began = times.utc_now()

    def pass_(**time):
        monkeypatch.setattr(times, "utc_now", lambda: began + timedelta(**time))

    return pass_


def test_a_request_is_a_note_until_nobody_looks_at_its_deadline(later):
    assert states(work.requests(None)) == [("requests", "ok")]
    asked = ledger.request_retraining("flights", cutoff=CUTOFF, reason="drift", asked_by="run")
    (finding,) = work.requests(None)
    assert (
        finding.state == "note"
        and f"request {asked.id} (drift, cutoff {CUTOFF}) is open; next step: train, by " in finding.what
    )
    later(days=2, hours=1)
    assert states(work.requests(None)) == [("requests", "note")]
    later(days=4, hours=1)
    (finding,) = work.requests(None)
    assert finding.state == "fault" and "flights__monitor" in finding.fix


def test_the_newest_request_that_failed_an_open_drift_and_untold_notices_are_told():
    asked = ledger.request_retraining("flights", cutoff=CUTOFF, reason="drift", asked_by="run")
    assert ledger.fail_request(asked, "three runs failed")
    ledger.open_episode("flights", at=CUTOFF, evidence={"reasons": ["auc is surely worse"]})
    findings = list(work.requests(None))
    assert states(findings) == [("requests", "note"), ("episodes", "note"), ("notices", "fault"), ("requests", "ok")]
    assert (
        "three runs failed" in findings[0].what
        and "auc is surely worse" in findings[1].what
        and "AIRLOOP_NOTIFY" in findings[2].fix
    )
    ledger.tell("flights")
    assert ("notices", "fault") not in states(work.requests(None))


@pytest.fixture
def airflow(monkeypatch):
    """Make Airflow return the given answers."""

    def says(runs):
        monkeypatch.setattr(httpx, "get", lambda *_, **__: None)
        for module in (work, project_status):
            monkeypatch.setattr(module, "runs_of", lambda *_: runs)
            monkeypatch.setattr(module.AirflowApi, "from_settings", lambda *_: None)

    return says


FAILED = FailedRun("flights__train", "manual__1", "2026-01-01T00:00:00Z", ("fit",))


def test_failed_and_hanging_runs_are_faults_and_paused_dags_notes(airflow):
    airflow(
        replace(WELL, failed=(FAILED,), long=("flights__ingest x is queued since 2026",), paused=("flights__deploy",))
    )
    findings = list(work.runs(get_settings()))
    assert states(findings) == [("runs", "fault"), ("runs", "fault"), ("runs", "note")]
    assert "/dags/flights__train/runs/manual__1" in findings[0].fix and "docs/runbooks/train.md" in findings[0].fix
    airflow(WELL)
    assert states(work.runs(get_settings())) == [("runs", "ok")]


@pytest.mark.parametrize(("profile", "state"), [("embedded", "note"), ("kubernetes", "fault")])
def test_an_old_backup_is_told(tmp_path, later, profile, state):
    settings = get_settings().model_copy(update={"profile": profile})
    assert states(work.last_backup(settings)) == [("backup", "note")]
    archive = tmp_path / "airloop.zip"
    archive.write_bytes(b"zip")
    backup.note_backup(archive)
    (finding,) = work.last_backup(settings)
    assert finding.state == "ok" and str(archive) in finding.what
    later(days=8, hours=1)
    (finding,) = work.last_backup(settings)
    assert finding.state == state and "8 days ago" in finding.what


@pytest.mark.parametrize("damage", ["page", "head"])
def test_a_damaged_sqlite_file_is_named_with_the_way_back(damage):
    ledger.set_clock("flights", CUTOFF)
    for number in range(200):
        ledger.decide("flights", "gate", f"subject {number}", verdict="x", reasons=["y" * 200], cutoff=CUTOFF)
    file = Path(get_settings().ledger.removeprefix("sqlite:///"))
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with file.open("r+b") as content:
        size = content.seek(0, 2)
        content.seek(size // 2 if damage == "page" else 0)
        content.write(b"\xff" * (16384 if damage == "page" else 100))
    (finding,) = [one for one in stores.databases(get_settings()) if one.name == "ledger" and one.state == "fault"]
    assert "damaged" in finding.what and "restore a backup" in finding.fix


@pytest.fixture
def registry_away(monkeypatch):
    def away(*_):
        raise MlflowException("Max retries exceeded")

    monkeypatch.setattr(project_status.versions, "champion", away)


def status(*arguments):
    done = CliRunner().invoke(app, ["status", "flights", *arguments])
    return done.exit_code, done.output


def test_the_status_of_a_project(airflow, registry_away):
    airflow(replace(WELL, failed=(FAILED,), paused=("flights__deploy",)))
    ledger.set_clock("flights", CUTOFF)
    ledger.record_stage("flights", "ingest", CUTOFF, dag_run="scheduled__1", summary={})
    asked = ledger.request_retraining("flights", cutoff=CUTOFF, reason="drift", asked_by="run")
    code, output = status()
    assert code == 1
    for words in (
        f"its present is {CUTOFF}, the clock of its replay", f"ingest          {CUTOFF}", "run scheduled__1", f"request {asked.id}", "next step: train",  # noqa: E501
        "flights__deploy", "flights__train manual__1 failed at 2026-01-01T00:00:00Z in fit", "MLflow does not answer at http://",
    ):  # fmt: skip
        assert words in output, words
    code, output = status("--json")
    assert code == 1 and '"well": false' in output and '"paused": [' in output


def test_a_project_that_is_well(airflow, monkeypatch):
    airflow(WELL)
    monkeypatch.setattr(project_status.versions, "champion", lambda _: None)
    monkeypatch.setattr(project_status, "lost_champion", lambda _: None)
    monkeypatch.setattr(project_status, "rollout_document", lambda _: None)
    code, output = status()
    assert code == 0 and "none: nothing is deployed yet" in output and "none waits" in output
