"""The whole loop on a real stack with a slice of the real flights.

The loop closes, every DAG can be rerun, and tasks can be killed with SIGKILL. The replay covers six
weeks of history and a first model, then three days that are compared with the loops on other
stores, then ten more days. One stack serves all tests of this file. Each test continues where the
previous one ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from include import ledger
from include.data import layout, tables
from include.demo.replay import Replay, ReplayStep
from include.settings import REPOSITORY, get_settings
from include.stack import lifecycle
from include.stack.api import AirflowApi
from tests.loop.harness import FIRST, FLIGHTS, SECOND, STAGES, Silent, a_house, replay
from tests.loop.probe import assert_nothing_leaks

THIRD = SECOND + timedelta(days=10)
KILLS = (
    "include.features.training_set:build",
    "include.registry.requests:apply_gate",
    "include.registry.versions:register_judged",
    "include.registry.requests:settle",
    "include.rollout.promotion:smoke_test",
    "include.rollout.promotion:promote",
    "include.rollout.promotion:wait_for_serving",
    "include.rollout.records:record_end",
    "include.data.ingest:ingest_source",
)


pytestmark = [pytest.mark.stack, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def house(tmp_path_factory, endings):
    """Start a stack on files whose processes can be killed on request.

    A result is stored even if the stack does not start, because other tests wait for it.
    """
    root = tmp_path_factory.mktemp("loop")
    hook = os.pathsep.join(filter(None, [str(Path(__file__).parent / "kill"), os.environ.get("PYTHONPATH")]))
    with (
        endings.guarantee("files"),
        pytest.MonkeyPatch.context() as patch,
        a_house(
            "files", root, patch, environment={"AIRLOOP_TEST_KILLS": str(root / "kills"), "PYTHONPATH": hook}
        ) as test_house,
    ):
        yield test_house


def state() -> dict:
    """Return everything that the loop keeps.

    This is the versions of every table, model versions, aliases, requests, and the number of
    predictions and online rows.
    """
    from include.registry import versions
    from include.registry.client import registry_client

    uris = (
        [layout.table(FLIGHTS, s.name) for s in FLIGHTS.sources]
        + [layout.feature_table(FLIGHTS, v) for v in FLIGHTS.feature_views]
        + [layout.predictions(FLIGHTS)]
    )
    return {
        "tables": {uri.rpartition("/")[2]: (tables.table_version(uri), tables.open_table(uri).count()) for uri in uris},
        "versions": sorted(
            (v.version, v.tags["gate"], v.tags["request"])
            for v in registry_client().search_model_versions("name = 'flights'")
        ),
        "aliases": versions.aliases(FLIGHTS),
        "requests": [(r.id, r.state) for r in ledger.requests("flights")],
        "episodes": [(e["id"], e["closed"]) for e in ledger.episodes("flights")],
        "files": ledger.count_files("flights"),
    }


def wait_until_quiet(api: AirflowApi, timeout: float = 600) -> None:
    """Wait until no DAG run is queued or running for two seconds."""
    deadline, quiet_since = time.monotonic() + timeout, None
    while time.monotonic() < deadline:
        busy = [r for r in api.runs(limit=200) if r["state"] in {"queued", "running"}]
        quiet_since = None if busy else quiet_since or time.monotonic()
        if quiet_since and time.monotonic() - quiet_since > 2:
            return
        time.sleep(0.5)
    raise TimeoutError(f"still busy: {[(r['dag_id'], r['state']) for r in busy]}")


@pytest.mark.parametrize("kind", ["files"])
def test_the_loop_closes_and_serving_agrees_with_the_batch(kind, house, endings):
    with endings.guarantee(kind):
        endings.keep(kind, replay(house))
    predicted = tables.open_table(layout.predictions(FLIGHTS)).to_pandas()
    assert len(predicted) > 2000 and not predicted.duplicated("prediction_id").any()
    assert (predicted["predicted_at"] == predicted["scheduled_departure"] - timedelta(hours=1)).all()
    assert (predicted["predicted_at"] > FIRST).all()
    for view in FLIGHTS.feature_views:
        assert not (predicted[f"feature_time_{view}"] > predicted["predicted_at"]).any(), (
            view
        )  # a missing time compares as False
        assert predicted[f"feature_time_{view}"].notna().any(), view
    refused = [r for r in ledger.file_records("flights") if r["status"] == "refused"]
    assert [r["reasons"][0]["rule"] for r in refused] == ["missing_column"]
    assert tables.open_table(layout.table(FLIGHTS, "quarantine")).count() > 0
    for record in ledger.file_records("flights"):
        counts = record["counts"]
        assert counts["rows"] == counts["table"] + counts["quarantine"] + counts["refused"], record["file"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_dag_run_again_changes_nothing(house, stage):
    api = house.api
    wait_until_quiet(api)
    before = state()
    dag_id = f"flights__{stage}"
    newest = next(r for r in api.runs(dag_id) if r["state"] in {"success", "failed"})
    expected = newest["state"]  # ingest fails: it refused a file
    present = ledger.now("flights")
    ledger.set_clock("flights", present + timedelta(days=9))  # a cleared run keeps its time
    try:
        assert api.clear(dag_id, newest["dag_run_id"]) > 0
        assert api.wait(dag_id, newest["dag_run_id"]) == expected
        wait_until_quiet(api)  # its events triggered the others again
    finally:
        ledger.set_clock("flights", present)
    assert state() == before


def test_tasks_killed_in_the_middle_are_taken_up_and_end_as_if_nothing_had_been(house):
    """Tasks that are killed after their work are retried and end as without the kill.

    This is a third step of the replay, with a training.
    """
    api, kills = house.api, house.settings.home.parent / "kills"
    wait_until_quiet(api)
    before = state()
    kills.write_text("\n".join(KILLS))
    more = Replay(FLIGHTS, api, Silent())
    done = more.records
    record = more.run(
        [ReplayStep(r.name, SECOND, SECOND) for r in done]
        + [ReplayStep("ten more days", SECOND, THIRD, recent_days_only=60)]
    )[-1]
    left = kills.read_text().split()
    deployed = [t["version"] for t in record.trainings if t["state"] == "deployed"]
    # Deploy then had nothing to do, so a person deploys the refused version.
    if not deployed:
        deployed = [record.trainings[0]["version"]]
        run_id = api.trigger("flights__deploy", {"version": deployed[-1], "cutoff": ledger.iso(THIRD)})
        assert api.wait("flights__deploy", run_id) == "success"
        left = kills.read_text().split()
    wait_until_quiet(api)
    # Every process that was to be killed was killed.
    assert left == []
    after = state()
    assert len(after["versions"]) == len(before["versions"]) + len(record.trainings)
    assert len({request for _, _, request in after["versions"]}) == len(after["versions"])  # one version per request
    assert (
        after["aliases"]["champion"] == deployed[-1] and after["aliases"]["previous"] == before["aliases"]["champion"]
    )
    for source in FLIGHTS.sources:
        rows = tables.open_table(layout.table(FLIGHTS, source.name)).to_pandas()
        assert not rows.duplicated(list(source.key)).any(), source.name
    counts = dict.fromkeys(("table", "quarantine"), 0)
    for r in ledger.file_records("flights"):
        for s in counts:
            counts[s] += r["counts"][s]
    held = sum(tables.open_table(layout.table(FLIGHTS, s.name)).count() for s in FLIGHTS.sources)
    assert counts == {"table": held, "quarantine": tables.open_table(layout.table(FLIGHTS, "quarantine")).count()}
    predicted = tables.open_table(layout.predictions(FLIGHTS)).to_pandas()
    assert not predicted.duplicated("prediction_id").any()


def test_what_serving_answered_is_in_its_log(house):
    import pyarrow.parquet as pq

    answers = json.loads((get_settings().home / "demo" / "steps.json").read_text())
    asked = {a["id"]: a["prediction"] for record in answers for a in record["serving_answers"]}
    logged = {}
    for path in layout.prediction_log(FLIGHTS).iterdir():
        rows = pq.read_table(str(path), columns=["prediction_id", "prediction"]).to_pydict()
        logged |= dict(zip(rows["prediction_id"], rows["prediction"], strict=True))
    assert asked and asked.items() <= logged.items()


def test_a_frozen_project_waits_through_a_restart_and_its_request_is_taken_up_by_the_thaw_itself(house):
    api = house.api
    wait_until_quiet(api)

    def airloop(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "include.cli", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    before = state()
    frozen = airloop("freeze", "flights", "--reason", "audit until Friday", "--by", "jo")
    assert frozen.returncode == 0 and "flights is frozen since" in frozen.stdout, frozen.stderr
    asked = airloop("retrain", "flights", "--reason", "new_code", "--last-days", "30")
    assert "by jo: audit until Friday" in asked.stderr and "Until then it waits" in asked.stderr
    run_id = next(r["dag_run_id"] for r in api.runs("flights__train", limit=1))
    assert api.wait("flights__train", run_id) == "success"
    assert {t["state"] for t in api.task_instances("flights__train", run_id)} == {"skipped"}
    (waiting,) = [r for r in ledger.requests("flights") if r.state == "open"]

    scheduler = next(line for line in lifecycle.status(get_settings()) if line.name == "scheduler")
    os.kill(scheduler.pid, signal.SIGKILL)
    assert airloop("up").returncode == 0
    shown = airloop("status")
    assert shown.returncode == 0 and "by jo: audit until Friday" in shown.stdout
    by_hand = api.trigger("flights__deploy", {"version": before["versions"][0][0]})
    assert api.wait("flights__deploy", by_hand) == "success"
    after = state()
    assert (after["aliases"], after["versions"]) == (before["aliases"], before["versions"])
    assert ledger.get_request(waiting.id).state == "open"

    thawed = airloop("thaw", "flights", "--by", "kim")
    assert thawed.returncode == 0 and "/dags/flights__train/runs/thawed__" in thawed.stdout, (
        thawed.stdout + thawed.stderr
    )
    deadline = time.monotonic() + 900
    while (ended := ledger.get_request(waiting.id)).live:
        assert time.monotonic() < deadline, ended
        time.sleep(1)
    assert ended.dag_run.startswith("thawed__") and ended.state in {"refused", "deployed"}
    assert len(state()["versions"]) == len(before["versions"]) + 1
    assert [d["verdict"] for d in ledger.decisions("flights", "freeze")] == ["frozen", "thawed"]


def test_no_secret_is_told(house):
    assert_nothing_leaks(house.kind, house.settings, house.api, None)
