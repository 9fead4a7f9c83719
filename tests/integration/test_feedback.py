"""Outcomes flow from POST /feedback into the evaluation of a canary, and wrong ones to quarantine.

The project is scaffolded. The service and the ingest DAG are real.
"""

import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

import include.projects
from include import ledger
from include.data import layout, storage, tables
from include.data.feed import drop
from include.data.prediction_log import SETTLED
from include.ledger import iso
from include.projects import get_project
from include.projects.rollout import Analysis, LabelPolicy, RolloutPolicy, Step
from include.rollout.evidence import look
from include.scaffold.new_project import new_project
from include.settings import get_settings
from serving import keys
from tests.serving.harness import INSTANCES, Registry, expected, graph, serving_process
from tests.waiting import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

NAME, ASKED = "parcels", 160
STEP = Step(weight=0.5)
FEATURES = {"shop": "b", "sales_7d": 0.5, "late_rate": 0, "temp": 0, "orders": 0}


@pytest.fixture
def parcels(fresh_store, tmp_path, monkeypatch):
    """Return a project that `airloop new-project` generated, outside of the repository."""
    (tmp_path / "made").mkdir()
    monkeypatch.setenv("AIRLOOP_PROJECTS", str(tmp_path / "made"))
    get_settings.cache_clear()
    new_project(NAME, "binary")
    get_project.cache_clear()
    yield get_project(NAME)
    get_project.cache_clear()
    for module in [module for module in sys.modules if module.startswith(f"include.projects.{NAME}")]:
        del sys.modules[module]
    vars(include.projects).pop(NAME, None)


@pytest.fixture
def service(parcels, fresh_store, tmp_path):
    """Run the service with keys. Version 1 is champion, and half of the entities get the canary.

    The canary is version 2, whose answers are inverted.
    """
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    contract = {"kind": "binary", "feature_service": "parcels_v1", "join_keys": parcels.entities}
    registry.add(name=NAME, contract=contract)
    turned = {"predictions": [-expected(row) for row in INSTANCES]}
    registry.add(name=NAME, contract=contract, champion=False, model=wrong_way_round(), golden=turned)
    arm = {"name": STEP.name, "version": "2", "weight": STEP.weight, "max_failures": 5, "max_seconds": 30}
    registry.client.set_registered_model_tag(
        NAME, "rollout", json.dumps({"traffic": {"salt": "2", "arms": [arm], "shadows": []}})
    )
    nothing = SimpleNamespace(folder=tmp_path / "no-features")  # callers provide all features
    nothing.folder.mkdir()
    file = tmp_path / "keys.json"
    made = {
        name: keys.create(file, name, roles)
        for name, roles in (("shop", ["predict", "feedback"]), ("warehouse", ["feedback"]), ("reader", ["predict"]))
    }
    process = serving_process(
        tmp_path, registry.uri, nothing, log_root=fresh_store / "store", profile="compose", keys_file=file
    )

    def call(path, body=None, key="shop"):
        headers = {"Content-Type": "application/json", **({"X-API-Key": made[key]} if key else {})}
        request = urllib.request.Request(
            process.url + path, None if body is None else json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def ready():
        status, status_document = call(f"/models/{NAME}") if process.get("/live")[0] == 200 else (0, None)
        return status == 200 and [arm["state"] for arm in status_document["arms"]] == ["ready"]

    try:
        wait_for(ready, 300, process.log.read_text)
        yield call
    finally:
        process.end()


def wrong_way_round() -> bytes:
    model = onnx.load_from_string(graph(output="good"))
    model.graph.node.append(helper.make_node("Neg", ["good"], ["prediction"]))
    model.graph.output[0].name = "prediction"
    onnx.checker.check_model(model)
    return model.SerializeToString()


def ask(service, project) -> list[SimpleNamespace]:
    """Send one request for each of this many customers. Return requests, answers and outcomes."""
    requests = []
    for number in range(ASKED):
        entity = dict(zip(project.entities, (f"c{number}", f"p{number % 7}"), strict=True))
        hour, at = number % 24, datetime.now(UTC)
        status, response = service(f"/models/{NAME}/predict", {"instances": [{**entity, "hour": hour, **FEATURES}]})
        assert status == 200, response
        (one,) = response["predictions"]
        requests.append(
            SimpleNamespace(id=one["prediction_id"], arm=one["arm"], entity=entity, at=iso(at), label=int(hour >= 12))
        )
    return requests


def by_id(one, label=None, **more):
    return {"prediction_id": one.id, "label": one.label if label is None else label, **more}


def by_entity(one, label=None):
    return {"entity": one.entity, "event_timestamp": one.at, "label": one.label if label is None else label}


def table(project, name) -> list[dict]:
    delta_table = tables.open_table(layout.table(project, name))
    return delta_table.to_pyarrow_table().to_pylist() if delta_table else []


def ingested(run_dag, since: datetime):
    """Run ingest on the labels that were sent until ``since``.

    Earlier runs leave these labels to the next run, because by their clock the labels had only just
    arrived.
    """
    for _ in range(5):
        wait_for(lambda: datetime.now(UTC) > since + 2 * SETTLED)
        run = run_dag(f"{NAME}__ingest")
        if "wait for the next run" not in run.log:
            return run
    raise AssertionError(run.log)


def test_outcomes_reach_the_look_at_a_canary_and_wrong_ones_reach_nobody(service, parcels, run_dag):
    began = datetime.now(UTC) - timedelta(seconds=1)
    asked = ask(service, parcels)
    first, rest = asked[: ASKED // 2], asked[ASKED // 2 :]
    sent = []

    def send(labels, key="shop", status=200):
        response = service("/feedback", {"model": NAME, "labels": labels}, key)
        assert response[0] == status, response
        sent.append(len(labels) if status == 200 and not response[1]["repeated"] else 0)
        return response[1]

    right = send([by_id(one) for one in first])
    send([by_entity(one) for one in rest], "warehouse")
    assert send([by_id(one) for one in first])["repeated"]
    send([by_id(one) for one in first[:4]], "warehouse")  # the same again, from another caller
    send([by_id(one, 1 - one.label) for one in (*first[:5], *rest[:5])])  # contradictions between both kinds of label
    send([by_entity(one, 1 - one.label) for one in (*first[5:10], *rest[5:10])], "warehouse")
    tomorrow = iso(datetime.now(UTC) + timedelta(days=1))
    nobody = SimpleNamespace(id="f" * 32, entity=dict.fromkeys(parcels.entities, "nobody"), at=first[0].at, label=1)
    send(
        [
            by_id(first[10], 2),
            by_entity(first[11], 0.5),
            by_id(first[12], 0, known_at=tomorrow),
            by_id(nobody),
            by_entity(nobody),
        ]
    )
    send([by_id(first[13], 0)], None, status=401)
    send([by_id(first[13], 0)], "reader", status=403)
    landing = layout.landing(parcels, parcels.source("feedback"))
    # As a tool that copies a file twice would.
    storage.write(landing / "copied.parquet", (landing / right["file"]).read_bytes())

    run = ingested(run_dag, datetime.now(UTC))
    assert {task for task, state in run.tasks.items() if state != "success"} == {"fail_on_refused_files"}, run
    assert "the same content came as" in run.log
    done = run.results["ingest_feedback"]
    assert done["rows"] == sum(sent) + len(first) == done["table"] + done["quarantine"] + done["refused"]
    assert (done["table"], done["refused"]) == (ASKED, len(first))
    taken = table(parcels, "feedback")
    assert {row["prediction_id"]: row["label"] for row in taken} == {one.id: one.label for one in asked} and len(
        taken
    ) == ASKED
    assert Counter(row["sent_by"] for row in taken) == {"shop": len(first), "warehouse": len(rest)}
    wrong = {
        "contradicts_earlier": 20,
        "repeats_earlier": 4,
        "column_values_to_be_in_set(label)": 2,
        "unknown_prediction": 2,
        "from_the_future": 1,
    }
    assert Counter(row["rule"] for row in table(parcels, "quarantine")) == wrong
    assert {row["source"] for row in table(parcels, "quarantine")} == {"feedback"}

    # A second evaluation finds nothing new. A contradiction that arrives later changes nothing.
    before = tables.table_version(layout.table(parcels, "feedback"))
    send([by_entity(one, 1 - one.label) for one in first[20:25]])
    again = ingested(run_dag, datetime.now(UTC))
    assert again.state == "success" and again.results["ingest_feedback"]["quarantine"] == 5
    assert tables.table_version(layout.table(parcels, "feedback")) == before

    project = parcels.model_copy(
        update={"rollout": RolloutPolicy(steps=(STEP,), analysis=Analysis(labels=LabelPolicy(min_labels=20)))}
    )
    arms = Counter(one.arm for one in asked)
    assert min(arms["canary"], arms["champion"]) > ASKED / 4
    (outcomes,) = [
        check
        for check in look(project, STEP, "2", since=began, until=datetime.now(UTC), tried_since=began)
        if check.name == "outcomes"
    ]
    assert outcomes.word == "breached", outcomes
    assert f"auc 0.0000 on {arms['canary']}, the champion's 1.0000 on {arms['champion']}" in outcomes.text


def test_a_project_to_which_nobody_sends_anything_is_none_the_worse(parcels, run_dag):
    feed = parcels.module("feed")
    until = feed.first_moment() + timedelta(days=2)
    drop(parcels, since=feed.first_moment(), until=until)
    run = run_dag(f"{NAME}__ingest", {"cutoff": iso(until)})
    assert run.state == "success" and set(run.tasks.values()) == {"success"}
    assert run.results["ingest_feedback"] | {"report": None} == {
        "source": "feedback",
        "files": 0,
        "rows": 0,
        "table": 0,
        "quarantine": 0,
        "refused": 0,
        "refused_files": [],
        "version": None,
        "report": None,
    }
    known = tables.read(parcels, "feedback", known_by=ledger.moment(iso(until)), columns=["prediction_id", "label"])
    assert not len(known) and known["label"].dtype == np.float64
