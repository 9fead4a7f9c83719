"""The real deploy DAG and service under constant requests: good and bad canaries.

A good canary is promoted to all traffic. A bad one is removed without a failed request.
"""

import json
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

import include.projects.flights as flights
from include import ledger
from include.data import layout
from include.projects import get_project
from include.projects.rollout import Analysis, Approval, RolloutPolicy, Step
from include.registry import versions
from include.rollout.document import rollout_document
from include.settings import get_settings
from tests.serving.bad_models import LATE_HOUR, bad_graph
from tests.serving.harness import Registry, expected, logged, serving_process
from tests.waiting import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

CUTOFF = "2013-02-03T00:00:00Z"
WEIGHT = 0.2
# Intervals of seconds, and enough inconclusive looks for a slow machine. Latency here depends on
# the machine, not on the models.
POLICY = RolloutPolicy(
    steps=(
        Step(name="next", shadow=1.0, interval=timedelta(seconds=3)),
        Step(weight=WEIGHT, interval=timedelta(seconds=3), looks=2),
    ),
    analysis=Analysis(min_samples=40, max_latency_ratio=None, inconclusive_limit=10_000),
    max_seconds=30,
)


class Callers:
    """Request predictions for new customers, sometimes for a late hour, and keep the answers."""

    def __init__(self, service) -> None:
        self.service, self.counts, self.wrong = service, Counter(), []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(2)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed):
        random_ = random.Random(seed)
        while not self._over.is_set():
            hour = LATE_HOUR + 1 if random_.random() < 0.3 else random_.randrange(24)
            instance = {
                "shop": "b",
                "hour": hour,
                "sales_7d": random_.gauss(0, 30),
                "late_rate": 0.5,
                "temp": -3,
                "orders": 2,
            }
            status, response = self.service.get(
                "/models/flights/predict", {"instances": [{**instance, "customer": random_.randrange(10**9)}]}
            )
            if status != 200 or abs(response["predictions"][0]["prediction"] - expected(instance)) > 1e-3:
                self.wrong.append((status, response))
            else:
                self.counts[response["predictions"][0]["model_version"], response["predictions"][0]["arm"]] += 1


@pytest.fixture
def deployed(run_dag, fresh_store, tmp_path, monkeypatch, request):
    """Deploy version 1 as champion.

    Return the registry, the service, and a function that creates the challenger with a given
    policy.
    """
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    _add(registry, "")
    registry.point("1", name="flights")
    features = type("NoFeatures", (), {"folder": tmp_path / "no-features"})  # callers provide all of them
    features.folder.mkdir()
    service = serving_process(tmp_path, registry.uri, features, log_root=fresh_store / "store")
    monkeypatch.setenv("AIRLOOP_SERVING_PORT", str(service.port))
    monkeypatch.setenv("AIRLOOP_SERVING_TIMEOUT", "300")
    get_settings.cache_clear()
    before = flights.project
    try:
        wait_for(
            lambda: service.get("/models/flights")[0] == 200 and service.get("/models/flights")[1]["version"] == "1",
            300,
            service.log.read_text,
        )

        def challenge(policy=POLICY, **parts):
            flights.project = before.model_copy(update={"rollout": policy})
            get_project.cache_clear()
            return _add(registry, "1", **parts)

        yield service, challenge
    finally:
        flights.project = before
        get_project.cache_clear()
        service.end()


def _add(registry, judged_against, **parts) -> str:
    contract = {"feature_service": "flights_v1"}
    version = registry.add(name="flights", champion=False, contract=contract, **parts)
    (registry.artifacts(version, name="flights") / "reference.parquet").write_bytes(b"")  # only the monitor reads it
    tags = {
        "gate": "passed",
        "judged_against": judged_against,
        "cutoff": CUTOFF,
        "metric.auc": "0.76",
        "gate_reasons": '["auc 0.76, the champion 0.75"]',
    }
    for name, value in tags.items():
        registry.client.set_model_version_tag("flights", version, name, value)
    registry.client.set_registered_model_alias("flights", "challenger", version)
    return version


def share(rows) -> float:
    """Return the canary's share of the requests.

    A request counts if its entity belongs to the canary, also when the champion answered in its
    place.
    """
    return sum(row["arm"] == "canary" or row["failed_arm"] == "canary" for row in rows) / len(rows)


def test_a_good_canary_goes_from_shadow_to_everybody(deployed, run_dag, fresh_store):
    service, challenge = deployed
    challenge()
    with Callers(service) as callers:
        run = run_dag("flights__deploy", {"cutoff": CUTOFF})
        wait_for(lambda: callers.counts["2", "champion"], 60)
    assert run.state == "success", run.log[-4000:]
    assert run.tasks["roll_out"] == "success" and run.tasks["rollback"] == "skipped"
    assert versions.aliases(get_project("flights")) == {"challenger": "2", "champion": "2", "previous": "1"}
    assert not callers.wrong and callers.counts["2", "canary"] > 40
    assert rollout_document(get_project("flights")).traffic is None
    report = (
        layout.report(get_project("flights"), "flights__deploy", run.run_id, "roll_out") / "index.html"
    ).read_text()
    assert "step 1, look" in report and "step 2, look" in report and "canary: 0.2 of the entities" in report
    shadows = list((fresh_store / "store" / "flights" / "shadow_log").glob("*.parquet"))
    assert shadows and [d["verdict"] for d in ledger.decisions("flights", "deploy")] == ["deployed"]


@pytest.mark.parametrize("how", ["throws", "nan"])
def test_a_bad_canary_is_taken_out_and_nobody_notices(how, deployed, run_dag, fresh_store):
    service, challenge = deployed
    straight = POLICY.model_copy(update={"steps": POLICY.steps[1:]})
    challenge(straight, model=bad_graph(how))
    with Callers(service) as callers:
        run = run_dag("flights__deploy", {"cutoff": CUTOFF})
        wait_for(lambda: service.get("/models/flights")[1]["arms"] == [], 60)
        before = callers.counts.total()
        wait_for(lambda: callers.counts.total() > before + 50, 120)
    assert run.state == "failed" and run.tasks["roll_out"] == "failed" and run.tasks["promote"] == "upstream_failed"
    assert "version 2 was taken out after" in run.log and "requests failed" in run.log
    assert versions.aliases(get_project("flights")) == {"challenger": "2", "champion": "1"}
    ended = json.loads(versions.get_version(get_project("flights"), "2").tags["rollout"])
    assert ended["state"] == "rolled_back" and "failed" in ended["reason"]
    assert [d["verdict"] for d in ledger.decisions("flights", "deploy")] == ["rolled_back"]

    # Not even the canary's own requests get a wrong answer, because the champion answers in its
    # place.
    assert not callers.wrong
    rows = logged(fresh_store / "store", "flights")
    bad = [row["predicted_at"] for row in rows if row["failed_arm"]]
    own = [row for row in rows if row["failed_arm"] or row["arm"] == "canary"]
    print(
        f"{how}: {len(own)} requests of its own, {len(bad)} bad, {(max(bad) - min(bad)).total_seconds():.2f} s from the"
        " first bad answer to the last"
    )
    assert bad and sum(min(bad) <= row["predicted_at"] <= max(bad) for row in own) <= 200
    assert {row["model_version"] for row in rows if row["failed_arm"] == "" and row["arm"] == "champion"} == {"1"}
    during = [row for row in rows if min(r["predicted_at"] for r in own) <= row["predicted_at"] <= max(bad)]
    # The champion's share is as configured.
    assert abs(share(during) - WEIGHT) < 4 * (WEIGHT / len(during)) ** 0.5 + 0.02


@pytest.mark.parametrize("answer", ["Approve", "Reject"])
def test_a_person_approves_or_refuses_with_the_figures_before_him(answer, deployed, run_dag):
    service, challenge = deployed
    short = POLICY.model_copy(update={"steps": POLICY.steps[:1], "approval": Approval()})
    challenge(short)
    asked = {}
    person = threading.Thread(target=lambda: asked.update(answer_when_asked(answer)), daemon=True)
    person.start()
    with Callers(service) as callers:
        run = run_dag("flights__deploy", {"cutoff": CUTOFF})
    person.join(60)
    assert run.state == "success", run.log[-4000:]
    assert "may version 2 answer everybody" in asked["subject"]
    body = asked["body"].replace("\\", "")  # Markdown of values is escaped
    assert "auc | 0.76" in body and "auc 0.76, the champion 0.75" in body and "errors | passed" in body
    assert "#/models/flights/versions/2" in asked["body"]
    assert (
        "rollout of version 2"
        in (layout.report(get_project("flights"), "flights__deploy", run.run_id, "approve") / "index.html").read_text()
    )
    (decision,) = ledger.decisions("flights", "deploy")
    if answer == "Approve":
        assert versions.aliases(get_project("flights"))["champion"] == "2" and decision["verdict"] == "deployed"
    else:
        assert run.tasks["promote"] == run.tasks["rollback"] == "skipped"
        assert versions.aliases(get_project("flights"))["champion"] == "1"
        assert decision["verdict"] == "refused" and decision["reasons"] == ["not approved by jo: too dear"]
        assert rollout_document(get_project("flights")).traffic is None
    assert not callers.wrong


def answer_when_asked(answer: str, seconds: float = 900) -> dict[str, str]:
    """Respond to the Required Actions page as a person does, and return what was shown.

    This uses Airflow's own route without the login.
    """
    from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
    from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    class Jo:
        get_id = get_name = staticmethod(lambda: "jo")

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # Airflow's database is a file that the run writes to. It may stay locked for longer than
        # the timeout.
        with suppress(OperationalError), create_session() as session:
            waiting = (
                session.query(TaskInstance)
                .filter(TaskInstance.task_id == "approve", TaskInstance.state == "awaiting_input")
                .first()
            )
            if waiting is not None:
                payload = UpdateHITLDetailPayload(chosen_options=[answer], params_input={"reason": "too dear"})
                detail = session.get(HITLDetail, waiting.id)
                shown = {"subject": detail.subject, "body": detail.body}
                update_hitl_detail(waiting.dag_id, waiting.run_id, "approve", payload, Jo(), session)
                return shown
        time.sleep(0.5)
    raise TimeoutError("nobody was asked")
