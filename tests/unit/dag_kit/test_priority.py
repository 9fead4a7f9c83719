"""What a site says of its pods: priorities. What becomes of them is shown on a cluster, in tests/cluster."""

import json

import pytest
from pydantic import ValidationError

from include.dag_kit.pod_names import Step
from include.dag_kit.pods import StepPod
from include.projects.compute import ComputeClass
from include.settings import Settings

STEP = Step("flights", "r1", "fit-torch_mlp", "/store/fit.json", "gpu_a", "abc")


@pytest.fixture
def pod_of(monkeypatch, tmp_path):
    """``pod_of(settings)`` gives the operator and the pod that it would make."""
    nowhere = {"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}}  # nothing is asked of it
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [nowhere], "users": [{"name": "me", "user": {}}], "current-context": "it"}
    config["contexts"] = [{"name": "it", "context": {"cluster": "nowhere", "user": "me"}}]
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(tmp_path / "kubeconfig")}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")

    def made(step: Step = STEP, **given):
        settings = Settings(home=tmp_path, data_root="s3://bucket", training_image="training:1", kubernetes_namespace="trainings", **given)
        operator = StepPod(task_id="fit", step=step, resources=ComputeClass(), command=["python"], settings=settings)
        return operator, operator.build_for({}, [], {})

    return made


@pytest.mark.parametrize(
    ("said", "compute", "becomes"),
    [
        (None, "gpu_a", None),
        ("gpu_a=airloop-gpu,*=airloop-preemptible", "gpu_a", "airloop-gpu"),
        ("gpu_a=airloop-gpu,*=airloop-preemptible", "cpu", "airloop-preemptible"),
        ("gpu_a = airloop-gpu", "cpu", ValidationError),
        ("gpu_a=airloop-gpu, ", "cpu", None),
    ],
)
def test_a_compute_class_has_its_priority(pod_of, said, compute, becomes):
    step = STEP._replace(compute=compute)
    if becomes is ValidationError:
        with pytest.raises(ValidationError, match="AIRLOOP_PRIORITY_CLASSES has 'gpu_a = airloop-gpu'; write each as"):
            pod_of(step, priority_classes=said)
        return
    assert pod_of(step, priority_classes=said)[1].spec.priority_class_name == becomes


def test_a_sites_template_may_say_it_too(pod_of, tmp_path):
    template = tmp_path / "pod.json"
    template.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "spec": {"priorityClassName": "house", "containers": [{"name": "base"}]}}))
    assert pod_of(pod_template=template)[1].spec.priority_class_name == "house"
    assert pod_of(pod_template=template, priority_classes="*=other")[1].spec.priority_class_name == "other"
