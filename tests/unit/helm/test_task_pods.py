"""Pods of tasks as the official chart creates them from our values.

The tests check what they can read, which rights they have, and which image they run.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from include.settings import Settings
from include.stack import kubernetes
from include.stack.component import control_secrets
from tests.helm import MISSING, PROGRAM, HelmError, helm
from tests.unit.helm.test_airflow_values import merged, read
from tests.unit.helm.test_secrets import STORE, settings

pytestmark = pytest.mark.skipif(not PROGRAM, reason=MISSING)


def task_template(tmp_path: Path, *sites: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a task as Helm renders it from our values.

    The text in ``podTemplate`` is a template of the official chart.
    """
    chart = tmp_path / "airflow"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: airflow, version: 1.22.0}")
    # The chart's own helper for the name of the ConfigMap with airflow.cfg.
    (chart / "templates" / "pod.yaml").write_text(
        '{{- define "airflow_config" }}{{ .Release.Name }}-config{{ end }}{{ tpl .Values.podTemplate . }}'
    )
    values = merged(read("values.yaml"), read("site.example.yaml"))
    for site in sites:
        values = merged(values, site)
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    return yaml.safe_load(helm("template", "airflow", chart))


def task_pod(tmp_path: Path) -> dict[str, Any]:
    """Return the pod that KubernetesExecutor's own code creates from the template."""
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
    from kubernetes.client import ApiClient

    options = read("values.yaml")["config"]["kubernetes_executor"]
    image = ":".join(filter(None, (options["worker_container_repository"], options["worker_container_tag"]))) or None
    base = PodGenerator.deserialize_model_dict(task_template(tmp_path))
    pod = PodGenerator.construct_pod(
        dag_id="flights__train",
        task_id="fit",
        pod_id="pod-1",
        try_number=1,
        kube_image=image,
        date=None,
        args=["python"],
        pod_override_object=None,
        base_worker_pod=base,
        namespace="airflow",
        scheduler_job_id="1",
        run_id="manual",
    )
    return ApiClient().sanitize_for_serialization(pod)


def test_a_tasks_pod_has_no_secret_of_airflow(tmp_path):
    """A task's pod has no secret of Airflow.

    The official chart's own template gives each task the metadata database and all keys. Ours names
    one secret with what tasks need.
    """
    pod = task_pod(tmp_path)
    (container,) = pod["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "airloop-airflow"}}]
    assert not [variable for variable in container["env"] if "valueFrom" in variable]
    assert "airloop-airflow-keys" not in json.dumps(pod) and not [
        volume for volume in pod["spec"]["volumes"] if "secret" in volume
    ]
    given = {variable["name"]: variable.get("value") for variable in container["env"]} | content_of("airloop-airflow")
    assert control_secrets(Settings(), given) == []
    assert {
        "AIRLOOP_LEDGER_URL",
        "AIRLOOP_MLFLOW_PASSWORD",
        "AIRLOOP_PROFILE",
        "AIRFLOW__CORE__EXECUTOR",
    } <= given.keys()


def content_of(name: str) -> dict[str, str]:
    """Return the content that `airloop kubernetes-secrets` writes into a secret."""
    return next(one["stringData"] for one in kubernetes.secrets(settings(), STORE) if one["metadata"]["name"] == name)


def test_a_tasks_pod_is_as_restricted_as_the_others_and_its_image_is_a_digest(tmp_path):
    pod = task_pod(tmp_path)
    values, (container,) = read("values.yaml"), pod["spec"]["containers"]
    assert re.fullmatch(r"registry\.example\.com/airloop-airflow@sha256:[0-9a-f]{64}", container["image"])
    assert (pod["spec"]["securityContext"], container["securityContext"]) == (
        values["securityContexts"]["pod"],
        values["securityContexts"]["containers"],
    )
    labels = pod["metadata"]["labels"]
    # The labels that NetworkPolicies select.
    assert (labels["tier"], labels["component"], labels["release"]) == ("airflow", "worker", "airflow")
    assert pod["spec"]["serviceAccountName"] == values["workers"]["serviceAccount"]["name"]


def test_without_a_digest_there_is_no_pod(tmp_path):
    with pytest.raises(HelmError, match=r"images\.airflow\.digest is not set"):
        task_template(tmp_path, {"images": {"airflow": {"digest": ""}}})
