"""Our values for the official Airflow chart match its schema and Airloop's own configuration.

The chart itself is in no registry that these tests can reach. deploy/helm/README.md lists what was
not run.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from include.settings import Settings
from include.stack.environment import airflow_environment
from tests.helm import CHARTS
from tests.unit.helm.airflow_chart import SCHEMA
from tests.unit.helm.test_secrets import settings

FOLDER = CHARTS / "airflow"
# Settings that Airloop gives to an Airflow on one machine, and that are set differently, or not at
# all, on a cluster.
ELSEWHERE = {
    "AIRFLOW__CORE__DAGS_FOLDER": "the image's",
    "AIRFLOW__CORE__PLUGINS_FOLDER": "the image's",
    "AIRFLOW__CORE__FERNET_KEY": "fernetKeySecretName",
    "AIRFLOW__API__SECRET_KEY": "apiSecretKeySecretName",
    "AIRFLOW__API_AUTH__JWT_SECRET": "jwtSecretName",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "data.metadataSecretName",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "the chart's",
    "AIRFLOW__CORE__EXECUTOR": "executor",
    "AIRFLOW__API__HOST": "the chart's",
    "AIRFLOW__API__PORT": "the chart's",
    "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "airloop-airflow",
    "AIRFLOW__API__BASE_URL": "site.example.yaml",
    "AIRFLOW__API__WORKERS": "replicas instead",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "FAB",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": "FAB",
    # Only for users who edit DAG files on their own machine and want to see changes immediately:
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "",
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "",
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def merged(below: Any, above: Any) -> Any:
    """Merge two values files as Helm does: maps by key, everything else as a whole."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {name: merged(below.get(name), value) for name, value in above.items()}
    return above


@pytest.fixture
def values():
    return read("values.yaml")


def faults(values: dict[str, Any]) -> list[str]:
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(SCHEMA).iter_errors(values)
    ]


@pytest.mark.parametrize(
    "files",
    [["values.yaml"], ["values.yaml", "site.example.yaml"], ["values.yaml", "dags-from-git.yaml", "site.example.yaml"]],
    ids=str,
)
def test_they_have_the_shape_that_the_chart_takes(files):
    values: dict[str, Any] = {}
    for name in files:
        values = merged(values, read(name))
    assert faults(values) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("webserver", {"replicas": 2}, "'webserver' was unexpected"),
        ("apiServer.replica", 2, "'replica' was unexpected"),
        ("apiServer.replicas", "2", "is not of type 'integer'"),
        ("executor", "KubernetesExecuter", "does not match"),
        ("env", {"A": "b"}, "is not of type 'array'"),
        ("createUserJob.env", [{"name": "A", "valueFrom": {}}], "'valueFrom' was unexpected"),
        ("extraEnvFrom", [{"secretRef": {"name": "x"}}], "is not of type 'string', 'null'"),
        ("config.core.parallelism", {"a": 1}, "is not of type"),
        ("images.airflow.pullPolicy", "Sometimes", "is not one of"),
    ],
)
def test_another_shape_would_be_seen(values, path, value, message):
    *parents, last = path.split(".")
    place = values
    for name in parents:
        place = place[name]
    place[last] = value
    assert any(message in fault for fault in faults(values)), faults(values)


def test_what_the_issue_of_a_cluster_asks_for(values):
    assert (values["executor"], values["airflowVersion"]) == ("KubernetesExecutor", installed_airflow())
    assert not values["workers"]["keda"]["enabled"] and not values["triggerer"]["keda"]["enabled"]
    assert not any(values[bundled]["enabled"] for bundled in ("postgresql", "redis", "flower", "pgbouncer"))
    assert values["config"]["core"]["auth_manager"].endswith(".FabAuthManager")
    assert values["config"]["logging"]["remote_logging"] == "True"
    assert (
        read("dags-from-git.yaml")["dagProcessor"]["dagBundleConfigList"][0]["classpath"]
        == "airflow.providers.git.bundles.git.GitDagBundle"
    )


def installed_airflow() -> str:
    from importlib.metadata import version

    return version("apache-airflow")


def test_every_option_that_the_house_sets_is_set_or_named(values, tmp_path):
    """Every option that Airloop sets is set or listed as an exception.

    Otherwise a new setting for one machine would be forgotten here.
    """
    both = (Settings(home=tmp_path), settings(home=tmp_path))  # one machine's settings, a cluster's settings
    house = {name for one in both for name in airflow_environment(one) if name.startswith("AIRFLOW__")}
    configured = {
        f"AIRFLOW__{section.upper()}__{option.upper()}"
        for section, options in values["config"].items()
        for option in options
    }
    assert house - configured - ELSEWHERE.keys() == set()
    assert ELSEWHERE.keys() - house == set(), "no longer said by the house"


def test_the_jobs_run_commands_that_there_are(values):
    from importlib.util import find_spec

    from typer.main import get_command

    from include.cli import app

    lines = [job["args"][-1] for job in (values["migrateDatabaseJob"], values["createUserJob"])]
    assert (modules := set(re.findall(r"python -m ([\w.]+)", " ".join(lines)))) and all(
        find_spec(module) for module in modules
    )
    known = get_command(app).commands.keys()
    assert set(re.findall(r"include\.cli ([\w-]+)", " ".join(lines))) == {"migrate", "sync-pools"} <= known


def test_no_secret_stands_in_them():
    for file in FOLDER.glob("*.yaml"):
        for line in file.read_text().splitlines():
            assert not re.search(
                r"(?i)(password|secret|token|fernetKey|jwtSecret): *['\"]?[A-Za-z0-9+/=_-]{8,}", line.partition("#")[0]
            ), line


def test_no_variable_is_one_that_nobody_reads(values):
    known = {f"AIRLOOP_{name.upper()}" for name in Settings.model_fields} | {"AIRLOOP_ENV_FILE"}
    given = {
        v["name"]
        for part in (values, values["migrateDatabaseJob"], values["createUserJob"])
        for v in part["env"]
        if v["name"].startswith("AIRLOOP_")
    }
    files = {item["path"] for item in values["createUserJob"]["extraVolumes"][0]["secret"]["items"]}
    assert given | files <= known
    json.loads(next(v["value"] for v in values["env"] if v["name"] == "AIRFLOW_CONN_KUBERNETES_DEFAULT"))


def test_pods_are_as_the_image_is(values):
    dockerfile = (CHARTS.parent / "images" / "airflow" / "Dockerfile").read_text()
    user, group = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE).groups()
    assert (values["uid"], values["gid"]) == (int(user), int(group))
    assert values["securityContexts"]["containers"]["readOnlyRootFilesystem"]
    written = {mount["mountPath"] for mount in values["volumeMounts"]}
    assert written == {"/tmp", values["airflowHome"]}
    assert 'ENTRYPOINT ["/entrypoint"]' in dockerfile


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["airflow", "db", "check-migrations"], "airflow db check-migrations"),
        (["bash", "-c", "exec airflow scheduler"], "airflow scheduler"),
        (
            ["python", "-m", "airflow.sdk.execution_time.execute_workload"],
            "python -m airflow.sdk.execution_time.execute_workload",
        ),
        (["version"], "airflow version"),
        ([], "airflow"),
    ],
    ids=str,
)
def test_the_image_runs_what_the_chart_gives_it(tmp_path, given, runs):
    """The image runs the commands of the chart.

    The chart's init containers, jobs, probes and workers begin with a program. `docker run image
    version` does not.
    """
    for name in ("airflow", "python"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    entrypoint = CHARTS.parent / "images" / "airflow" / "entrypoint"
    done = subprocess.run(
        [entrypoint, *given], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip("\n") == runs


BUNDLE = """
import json, sys
from airflow.dag_processing.bundles.manager import DagBundlesManager
bundle = DagBundlesManager().get_bundle("dags")
bundle.initialize()
files = sorted(file.name for file in bundle.path.glob("*.py"))
print(json.dumps({"files": files, "version": bundle.get_current_version()}, default=str))
"""


def test_airflow_takes_dag_files_from_a_repository_by_these_values(tmp_path):
    """Airflow loads DAG files from a repository with these values.

    The bundle has its original settings, with a repository on this machine.
    """
    origin = tmp_path / "origin"
    (origin / "dags").mkdir(parents=True)
    (origin / "dags" / "train.py").write_text("x = 1\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", "-C", str(origin)]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    bundles = read("dags-from-git.yaml")["dagProcessor"]["dagBundleConfigList"]
    bundles[0]["kwargs"]["repo_url"] = str(origin)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(tmp_path / "bundles"),
        "AIRFLOW_CONN_GIT_DAGS": json.dumps({"conn_type": "git"}),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run(
        [sys.executable, "-c", BUNDLE], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = json.loads(done.stdout.splitlines()[-1])
    assert output["files"] == ["train.py"] and commit in json.dumps(output["version"])
