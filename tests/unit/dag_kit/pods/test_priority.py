"""A site's priorities of pods. tests/cluster shows their effect on a cluster."""

import json

import pytest
from pydantic import ValidationError

from include.dag_kit.pods.names import PodStep
from include.dag_kit.pods.operator import StepPod
from include.projects.compute import ComputeClass
from include.settings import Settings

STEP = PodStep("flights", "r1", "fit-torch_mlp", "/store/fit.json", "gpu_a", "abc")


@pytest.fixture
def pod_of(monkeypatch, tmp_path):
    """Return a function that returns the operator and its pod: ``pod_of(settings)``."""
    nowhere = {"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}}  # no request is sent to it
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [nowhere],
        "users": [{"name": "me", "user": {}}],
        "current-context": "it",
    }
    config["contexts"] = [{"name": "it", "context": {"cluster": "nowhere", "user": "me"}}]
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(tmp_path / "kubeconfig")}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")

    def made(step: PodStep = STEP, **given):
        settings = Settings(
            home=tmp_path,
            data_root="s3://bucket",
            training_image="training:1",
            kubernetes_namespace="trainings",
            **given,
        )
        operator = StepPod(task_id="fit", step=step, resources=ComputeClass(), command=["python"], settings=settings)
        return operator, operator.build_for({}, [], {})

    return made


@pytest.mark.parametrize(
    ("classes", "compute", "becomes"),
    [
        (None, "gpu_a", None),
        ("gpu_a=airloop-gpu,*=airloop-preemptible", "gpu_a", "airloop-gpu"),
        ("gpu_a=airloop-gpu,*=airloop-preemptible", "cpu", "airloop-preemptible"),
        ("gpu_a = airloop-gpu", "cpu", ValidationError),
        ("gpu_a=airloop-gpu, ", "cpu", None),
    ],
)
def test_a_compute_class_has_its_priority(pod_of, classes, compute, becomes):
    step = STEP._replace(compute=compute)
    if becomes is ValidationError:
        with pytest.raises(
            ValidationError, match="AIRLOOP_PRIORITY_CLASSES contains 'gpu_a = airloop-gpu'. Write each entry as"
        ):
            pod_of(step, priority_classes=classes)
        return
    assert pod_of(step, priority_classes=classes)[1].spec.priority_class_name == becomes


def test_a_sites_template_may_say_it_too(pod_of, tmp_path):
    template = tmp_path / "pod.json"
    template.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "spec": {"priorityClassName": "house", "containers": [{"name": "base"}]},
            }
        )
    )
    assert pod_of(pod_template=template)[1].spec.priority_class_name == "house"
    assert pod_of(pod_template=template, priority_classes="*=other")[1].spec.priority_class_name == "other"
