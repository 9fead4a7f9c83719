"""The stack of docker-compose.yaml from a user's view: up, access, a loop, failures, down.

The tests depend on each other and run in their order.

make test-compose
"""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.compose.conftest import PROJECT, Stack
from tests.waiting import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.images, pytest.mark.timeout(3600)]

LONG_LIVED = {
    *("postgres", "redis", "s3", "mlflow", "api-server", "scheduler", "dag-processor", "triggerer", "serving"),
    *("proxy", "statsd-exporter", "prometheus", "grafana"),
}
ONCE = {"databases", "buckets", "migrate", "serving-keys"}
# With only four weeks, no candidate beats the baseline. The gate would refuse, and nothing would be
# deployed, scored or served.
LOOP = """
import json
from datetime import UTC, datetime
from include import ledger
from include.demo.replay import Replay, ReplayStep
from include.projects import get_project
from include.stack.api import AirflowApi

class Silent:
    step = stage = note = staticmethod(print)

begin, first, second = (datetime(*day, 10, tzinfo=UTC) for day in ((2012, 12, 30), (2013, 2, 12), (2013, 2, 15)))
flights, api = get_project("flights"), AirflowApi.from_settings()
api.wait_for_dags([f"flights__{stage}" for stage in ("ingest", "build_features", "train", "deploy", "score", "monitor")], timeout=300)
steps = [ReplayStep("history", begin, first, first_model=True), ReplayStep("three days", first, second, bad_files=("missing_column",))]
records = Replay(flights, api, Silent()).run(steps)
result = {"trained": [t["state"] for t in records[0].trainings], "asked": records[0].serving_asked, "agreed": records[0].serving_agreed,
         "labels": records[1].monitor["labels"], "gate": [d["verdict"] for d in ledger.decisions("flights", "gate")]}
print("FOUND " + json.dumps(result))
"""  # noqa: E501
CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
        print(address, "yes")
    except OSError as error:
        print(address, "no", error)
"""


def test_everything_starts_and_is_well(stack: Stack):
    up = stack.make("compose-up", timeout=3000)
    assert up.returncode == 0, up.stdout[-8000:]
    states = dict(re.findall(r"^ *[\d.]+ s  (\S+): (.+)$", up.stdout, re.MULTILINE))  # the last state of each
    assert {name for name, state in states.items() if state == "well"} == LONG_LIVED
    assert {name for name, state in states.items() if state == "done"} == ONCE


def test_nothing_but_the_proxy_is_published(stack):
    assert published(stack) == {"proxy"}
    ports = json.loads(stack.engine("inspect", stack.container("proxy")).stdout)[0]["HostConfig"]["PortBindings"]
    assert sorted(port for port, places in ports.items() if places) == ["443/tcp", "80/tcp"]


def test_each_way_in_is_tls_and_asks_who_one_is(stack):
    with stack.client("airflow") as airflow:
        assert airflow.get("/api/v2/monitor/health").json()["scheduler"]["status"] == "healthy"
        assert airflow.get("/api/v2/dags").status_code == 401
        assert airflow.get("/", follow_redirects=True).status_code == 200
        assert airflow.get("/").headers["strict-transport-security"]
        login = {"username": "admin", "password": stack.secrets["AIRLOOP_AIRFLOW_ADMIN_PASSWORD"]}
        assert airflow.post("/auth/token", json=login | {"password": "wrong"}).status_code == 401
        token = airflow.post("/auth/token", json=login).raise_for_status().json()["access_token"]
        assert airflow.get("/api/v2/dags", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    with stack.client("mlflow") as mlflow:
        ask = "/api/2.0/mlflow/experiments/search"
        assert mlflow.post(ask, json={"max_results": 1}).status_code == 401 and mlflow.get("/").status_code == 401
        known = (stack.secrets.get("AIRLOOP_MLFLOW_USERNAME") or "airloop", stack.secrets["AIRLOOP_MLFLOW_PASSWORD"])
        assert mlflow.post(ask, json={"max_results": 1}, auth=known).status_code == 200
        assert mlflow.post(ask, json={"max_results": 1}, auth=(known[0], "wrong")).status_code == 401
    with stack.client("serving") as serving:
        key = {"Authorization": f"Bearer {stack.secrets['AIRLOOP_SERVING_API_KEY']}"}
        assert serving.get("/live").status_code == 200 and serving.get("/models").status_code == 401
        assert serving.get("/models", headers=key).status_code == 200
        # Prometheus' own key gives access to metrics, but not from here.
        metrics = {"Authorization": f"Bearer {stack.secrets['SERVING_METRICS_KEY']}"}
        assert (
            serving.get("/metrics", headers=metrics).status_code == 404
            and serving.get("/models", headers=metrics).status_code == 403
        )
    with stack.client("grafana") as grafana:
        assert "Airflow" in grafana.get("/api/health").json()["dashboards"]
    with stack.client("elsewhere") as nobody, pytest.raises(Exception, match="(?i)tls|ssl"):
        nobody.get("/")


def test_who_must_not_talk_to_whom_cannot(stack):
    def reaches(service: str, *addresses: str) -> dict[str, bool]:
        lines = stack.exec(service, "python", "-c", CONNECT, *addresses).splitlines()
        return {line.split()[0]: line.split()[1] == "yes" for line in lines}

    everybody = (
        "postgres:5432",
        "redis:6379",
        "s3:7070",
        "mlflow:5000",
        "serving:8000",
        "api-server:8080",
        "prometheus:9090",
        "1.1.1.1:443",
    )
    # A network of two services connects both directions: clients of a service and servers of it.
    serving = {
        "postgres:5432",
        "redis:6379",
        "s3:7070",
        "mlflow:5000",
        "serving:8000",
        "api-server:8080",
        "prometheus:9090",
    }
    assert {a for a, yes in reaches("serving", *everybody).items() if yes} == serving
    assert {a for a, yes in reaches("mlflow", *everybody).items() if yes} == {
        "postgres:5432",
        "s3:7070",
        "mlflow:5000",
        "serving:8000",
        "api-server:8080",
    }
    assert reaches("api-server", "mlflow:5000", "serving:8000") == {
        "mlflow:5000": True,
        "serving:8000": True,
    }  # for the page Rollout
    assert {a for a, yes in reaches("dag-processor", *everybody).items() if yes} == {"postgres:5432", "api-server:8080"}
    assert {a for a, yes in reaches("scheduler", *everybody).items() if not yes} == {"prometheus:9090", "1.1.1.1:443"}


def test_prometheus_reaches_all_that_it_asks(stack):
    def targets() -> dict[str, str]:
        response = json.loads(stack.exec("prometheus", "wget", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/targets"))
        return {
            target["labels"]["job"]: f"{target['health']} {target['lastError']}".strip()
            for target in response["data"]["activeTargets"]
        }

    wait_for(lambda: set(targets().values()) == {"up"}, 180, targets, interval=1)
    assert targets().keys() == {"prometheus", "serving", "airflow", "proxy"}
    assert "SUCCESS" in stack.exec("prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    # Airflow's own metrics arrive under the names that the alerts use.
    wait_for(
        lambda: (
            "airflow_scheduler_heartbeat"
            in stack.exec("statsd-exporter", "wget", "-q", "-O", "-", "http://127.0.0.1:9102/metrics")
        ),
        120,
        targets,
        interval=1,
    )


def test_a_loop_closes(stack):
    ran = stack.airloop("--entrypoint", "python", "airloop", "-c", LOOP, timeout=3000)
    assert ran.returncode == 0, ran.stdout[-8000:]
    result = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert result["trained"] == ["deployed"] and result["gate"], result
    assert result["asked"] >= 10 and result["agreed"] == result["asked"] and result["labels"] > 1000, result


def test_the_model_answers_through_the_proxy(stack):
    assert champion(stack)["version"]


def champion(stack) -> dict:
    with stack.client("serving", headers={"X-API-Key": stack.secrets["AIRLOOP_SERVING_API_KEY"]}) as serving:
        return serving.get("/models/flights").raise_for_status().json()


@pytest.mark.parametrize("service", ["redis", "mlflow", "scheduler"])
def test_who_is_killed_comes_back(stack, service):
    before = json.loads(stack.engine("inspect", stack.container(service)).stdout)[0]["State"]
    os.kill(before["Pid"], signal.SIGKILL)
    now = lambda: json.loads(stack.engine("inspect", stack.container(service)).stdout)[0]["State"]  # noqa: E731
    wait_for(lambda: now()["Running"] and now()["Pid"] not in (0, before["Pid"]), 120, now, interval=1)
    assert champion(stack)["version"]  # in the meantime
    command = ["python3", "deploy/compose/wait.py", "--engine", "podman", "--project", PROJECT, "--timeout", "900"]
    well = subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=False)
    assert well.returncode == 0, well.stdout + well.stderr


def test_no_container_has_said_a_secret(stack):
    secrets = secrets_of(stack)
    assert len(secrets) >= 15
    logs = {service: stack.engine("logs", stack.container(service)).stdout for service in LONG_LIVED | ONCE}
    assert [(service, name) for service, text in logs.items() for name, value in secrets.items() if value in text] == []
    assert all(logs[service] for service in ("scheduler", "mlflow", "serving"))


def test_down_keeps_the_data_and_up_goes_on_with_them_in_workers_of_their_own(stack):
    """`down` keeps the data, and `up` continues with them in separate workers.

    This is also the migration from tasks in the scheduler to tasks in Celery's workers: two lines
    of the settings file.
    """
    version = champion(stack)["version"]
    down = stack.make("compose-down", timeout=900)
    assert down.returncode == 0, down.stdout[-3000:]
    assert ours(stack, "ps", "--all") == [] and len(ours(stack, "volume", "ls")) > 8
    with Path(stack.environment["ENV_FILE"]).open("a") as settings:
        settings.write("\nCOMPOSE_PROFILES=celery\nAIRFLOW_EXECUTOR=CeleryExecutor\n")
    up = stack.make("compose-up", timeout=3000)
    assert up.returncode == 0, up.stdout[-8000:]
    wait_for(lambda: champion(stack)["version"] == version, 120, lambda: champion(stack), interval=1)
    assert published(stack) == {"proxy"}
    ran = stack.airloop("airloop", "run", "flights", "ingest")
    assert ran.returncode == 0, ran.stdout[-8000:]
    log = stack.engine("logs", stack.container("worker")).stdout
    assert "execute_workload" in log and "flights__ingest" in log, log[-4000:]
    assert [
        name
        for name, value in secrets_of(stack).items()
        if value in log + stack.engine("logs", stack.container("broker")).stdout
    ] == []


def test_down_with_its_volumes_leaves_nothing(stack):
    down = stack.make("compose-down", "VOLUMES=yes", timeout=900)
    assert down.returncode == 0, down.stdout[-3000:]
    assert ours(stack, "ps", "--all") == ours(stack, "volume", "ls") == ours(stack, "network", "ls") == []


def secrets_of(stack) -> dict[str, str]:
    return {
        name: value
        for name, value in stack.secrets.items()
        if any(word in name for word in ("SECRET", "PASSWORD", "_KEY")) and len(value) > 8
    }


def published(stack) -> set[str]:
    """Return the services that publish ports."""
    containers = [json.loads(stack.engine("inspect", container).stdout)[0] for container in ours(stack, "ps", "--all")]
    return {
        one["Config"]["Labels"]["com.docker.compose.service"]
        for one in containers
        if any(one["HostConfig"]["PortBindings"].values())
    }


def ours(stack, *listing: str) -> list[str]:
    return stack.engine(*listing, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").stdout.split()
