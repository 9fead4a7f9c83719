"""The chart as Helm renders it.

tests/cluster/test_chart.py shows how its objects behave on a cluster.
"""

import json
import re
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from include.settings import REPOSITORY
from tests.cluster.namespace import rules_of_runbook
from tests.helm import CHART, MISSING, PROGRAM, SITE, HelmError, helm, one, render, values_file

pytestmark = pytest.mark.skipif(not PROGRAM, reason=MISSING)

ALONE = {"mlflow.enabled": False, "serving.enabled": False, "airflow.networkPolicy.enabled": False}


@pytest.fixture(scope="module")
def objects():
    return render()


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies the chart with one text replaced.

    ``copy("serving/deployment.yaml", "5", "6")`` returns the copy's folder.
    """

    def changed(file: str, old: str, new: str):
        shutil.copytree(CHART, tmp_path / "airloop")
        template = tmp_path / "airloop" / "templates" / file
        text = template.read_text()
        assert old in text
        template.write_text(text.replace(old, new))
        return tmp_path / "airloop"

    return changed


def test_it_lints():
    assert "0 chart(s) failed" in helm("lint", CHART, "--strict", "--values", SITE)


def unknown_fields(manifest: dict[str, Any]) -> list[str]:
    """Return the fields of an object that Kubernetes' own client does not know.

    The API server would silently drop or refuse them.
    """
    from kubernetes.client import ApiClient

    api = ApiClient()
    model = manifest["apiVersion"].split("/")[-1].capitalize() + manifest["kind"]
    there = api.sanitize_for_serialization(api.deserialize(SimpleNamespace(data=json.dumps(manifest)), model))
    return _missing(manifest, there)


def _missing(given: Any, kept: Any, at: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        lost = [f"{at}.{name}" for name in given if name not in kept and given[name] not in (None, "", [], {})]
        return lost + [
            path for name in given.keys() & kept.keys() for path in _missing(given[name], kept[name], f"{at}.{name}")
        ]
    if isinstance(given, list) and isinstance(kept, list):
        return [path for i, (a, b) in enumerate(zip(given, kept, strict=True)) for path in _missing(a, b, f"{at}[{i}]")]
    return [] if str(given) == str(kept) else [f"{at}: {given!r} became {kept!r}"]


def test_kubernetes_knows_every_field(objects):
    assert {(o["kind"], o["metadata"]["name"]): lost for o in objects if (lost := unknown_fields(o))} == {}


def test_a_misspelled_field_would_be_seen(copy):
    changed = render(
        chart=copy("serving/deployment.yaml", "terminationGracePeriodSeconds:", "terminationGracePeriodSecond:")
    )
    assert unknown_fields(one(changed, "Deployment", "loop-serving")) == [
        ".spec.template.spec.terminationGracePeriodSecond"
    ]


# --- access: Airflow's account in the training namespace ------------------------------------------


def rules(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_airflows_account_may_exactly_what_the_runbook_says(objects):
    for_namespace, for_nodes = rules_of_runbook()
    assert rules(one(objects, "Role")) == rules({"rules": for_namespace})
    assert rules(one(objects, "ClusterRole")) == rules({"rules": for_nodes})
    assert one(objects, "Role")["metadata"]["namespace"] == "airloop-training"


@pytest.mark.parametrize(
    ("old", "new"),
    [("[create, get, delete]", "[create, get, list, delete]"), ("resources: [pods/log]", "resources: [pods/exec]")],
)
def test_one_verb_more_would_be_seen(copy, old, new):
    changed = render(chart=copy("training/access.yaml", old, new))
    assert rules(one(changed, "Role")) != rules({"rules": rules_of_runbook()[0]})


def test_the_accounts_are_those_of_the_values_for_airflow(objects):
    values = yaml.safe_load((CHART.parent / "airflow" / "values.yaml").read_text())
    expected = {(values[part]["serviceAccount"]["name"], "airflow") for part in ("workers", "triggerer")}
    for binding in ("RoleBinding", "ClusterRoleBinding"):
        assert {(s["name"], s["namespace"]) for s in one(objects, binding)["subjects"]} == expected


def test_without_the_nodes_there_is_nothing_for_the_whole_cluster_but_priorities():
    kinds = {o["kind"] for o in render({"training.listNodes": False})}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding"} and "Role" in kinds


# --- pods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["mlflow", "serving"])
def test_a_pod_can_do_nothing_but_its_work(objects, part):
    pod = one(objects, "Deployment", f"loop-{part}")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (
        pod["automountServiceAccountToken"] is False
        and not one(objects, "ServiceAccount", f"loop-{part}")["automountServiceAccountToken"]
    )
    assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
    assert pod["enableServiceLinks"] is False


def test_probes_ask_what_tells_live_from_ready(objects):
    container = one(objects, "Deployment", "loop-serving")["spec"]["template"]["spec"]["containers"][0]
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/live", "livenessProbe": "/live", "readinessProbe": "/ready"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 180


def test_an_update_takes_no_pod_away_before_another_one_is_ready(objects):
    deployment = one(objects, "Deployment", "loop-serving")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    # The autoscaler sets the replicas, and an upgrade must not reset them.
    assert "replicas" not in deployment["spec"]
    assert (
        one(render({"serving.autoscaling.enabled": False, "serving.replicas": 3}), "Deployment", "loop-serving")[
            "spec"
        ]["replicas"]
        == 3
    )
    pod = deployment["spec"]["template"]["spec"]
    drain = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert drain == 10 and pod["terminationGracePeriodSeconds"] >= drain + 30


def test_every_secret_is_a_name(objects):
    """Every secret is a reference.

    There is no object of kind Secret and no value that resembles one. Each variable with a secret
    reads it from a secret's key.
    """
    assert "Secret" not in {o["kind"] for o in objects}
    for part in ("mlflow", "serving"):
        for variable in one(objects, "Deployment", f"loop-{part}")["spec"]["template"]["spec"]["containers"][0]["env"]:
            if (
                re.search("PASSWORD|SECRET|_KEY|DATABASE_URL|REGISTRY_URL|STORE_URL", variable["name"])
                and variable["name"] != "SERVING_KEYS_FILE"
            ):
                assert variable["valueFrom"]["secretKeyRef"]["name"] in {f"airloop-{part}"}, variable
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert not re.search(
        r"(password|secret|token|apikey): *[^ {#\n]",
        re.sub(r"(keysS|s)ecretName: .*", "", yaml.safe_dump(values)),
        re.IGNORECASE,
    )


def test_what_parts_call_each_other_by_is_one_name(objects):
    service = one(objects, "Service", "loop-mlflow")
    serving = variables(objects, "serving")
    assert (
        serving["SERVING_MLFLOW_URI"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    allowed = variables(objects, "mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"loop-mlflow:*", "loop-mlflow.ml:*", "mlflow.example.com"} <= set(allowed)
    for part in ("mlflow", "serving"):
        deployment = one(objects, "Deployment", f"loop-{part}")["spec"]
        pods = deployment["template"]["metadata"]["labels"]
        for selector in (
            one(objects, "Service", f"loop-{part}")["spec"]["selector"],
            deployment["selector"]["matchLabels"],
        ):
            assert selector.items() <= pods.items()
        assert (
            one(objects, "NetworkPolicy", f"loop-{part}")["spec"]["podSelector"]["matchLabels"].items() <= pods.items()
        )


def variables(objects: list[dict[str, Any]], part: str) -> dict[str, str]:
    container = one(objects, "Deployment", f"loop-{part}")["spec"]["template"]["spec"]["containers"][0]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def test_settings_that_the_parts_read_exist(objects):
    """Every variable of the chart is a setting that a component reads.

    An unread variable is a typing error or a renamed setting.
    """
    from include.settings import Settings
    from serving.settings import Settings as ServingSettings

    known = {f"AIRLOOP_{name.upper()}" for name in Settings.model_fields} | {
        f"SERVING_{name.upper()}" for name in ServingSettings.model_fields
    }
    known |= set(re.findall(r"\$\{(\w+)\}", (REPOSITORY / "serving" / "feature_store.yaml").read_text()))
    given = {
        name
        for part in ("mlflow", "serving")
        for name in variables(objects, part)
        if name.startswith(("AIRLOOP_", "SERVING_"))
    }
    assert given - {"AIRLOOP_ENV_FILE"} <= known
    assert {"SERVING_PROFILE", "SERVING_KEYS_FILE", "AIRLOOP_PROFILE", "AIRLOOP_MLFLOW_DATABASE_URL"} <= given


def test_the_budget_and_the_autoscaler_mean_the_deployment(objects):
    budget, scaler = one(objects, "PodDisruptionBudget"), one(objects, "HorizontalPodAutoscaler")
    deployment = one(objects, "Deployment", "loop-serving")
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert budget["spec"]["minAvailable"] < scaler["spec"]["minReplicas"]


# --- the training namespace -----------------------------------------------------------------------


def test_quota_limits_and_priorities(objects):
    quota = one(objects, "ResourceQuota")["spec"]["hard"]
    # The site's value next to the chart's.
    assert quota["requests.nvidia.com/gpu"] == "8" and quota["pods"] == "50"
    values = {o["metadata"]["name"]: o for o in objects if o["kind"] == "PriorityClass"}
    assert (
        values["airloop-serving"]["value"] > values["airloop-gpu"]["value"] > 0 > values["airloop-preemptible"]["value"]
    )
    assert values["airloop-preemptible"]["preemptionPolicy"] == "Never"
    assert not any(o.get("globalDefault") for o in values.values())
    limits = one(objects, "LimitRange")["spec"]["limits"][0]
    # A quota on requests refuses pods that request nothing, unless these defaults apply.
    assert {name.removeprefix("requests.") for name in quota if name in ("requests.cpu", "requests.memory")} <= limits[
        "defaultRequest"
    ].keys()
    assert "memory" in limits["default"]


def test_where_the_classes_are_somebody_elses_nobody_is_given_one():
    objects = render({"priorityClasses.create": False})
    assert not [o for o in objects if o["kind"] == "PriorityClass"]
    assert "priorityClassName" not in one(objects, "Deployment", "loop-serving")["spec"]["template"]["spec"]


def test_training_pods_are_called_by_each_other_alone(objects):
    policy = one(objects, "NetworkPolicy", "loop-training")["spec"]
    assert policy["podSelector"] == {} and policy["ingress"] == [{"from": [{"podSelector": {}}]}]
    assert {"Ingress", "Egress"} == set(policy["policyTypes"])


def test_parts_that_are_off_leave_nothing():
    kinds = {(o["kind"], o["metadata"]["name"]) for o in render(ALONE | {"priorityClasses.create": False})}
    assert {name for _, name in kinds} == {"airloop-training", "loop-training", "airloop-training-nodes"}
    assert render(ALONE | {"training.enabled": False, "priorityClasses.create": False}) == []


def test_a_namespace_that_is_there_already_is_not_made():
    assert "Namespace" not in {o["kind"] for o in render({"training.namespace.create": False})}


# --- invalid values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"mlflow.adminPassword": "x"},
            "/mlflow': additional properties 'adminPassword' not allowed",
            id="a name that is not there",
        ),
        pytest.param({"serving.image.tag": ""}, "/serving/image/tag", id="no tag"),
        pytest.param(
            {"serving.image.tag": "latest"}, "serving.image.tag is 'latest', which moves", id="a tag that moves"
        ),
        pytest.param({"storage.dataRoot": ""}, "/storage/dataRoot", id="no data root"),
        pytest.param({"storage.dataRoot": "s3:/x"}, "/storage/dataRoot", id="a data root that is none"),
        pytest.param({"storage.endpoint": "http://me:secret@s3"}, "/storage/endpoint", id="a secret in an address"),
        pytest.param(
            {"serving.drainSeconds": 1}, "/serving/drainSeconds", id="a drain shorter than what routes to the pod needs"
        ),
        pytest.param(
            {"serving.autoscaling.minReplicas": 1}, "/serving/autoscaling/minReplicas", id="one replica is no service"
        ),
        pytest.param({"serving.autoscaling.minReplicas": "2"}, "got string, want integer", id="a number in quotes"),
        pytest.param({"serving.resources.requests": {"cpu": None}}, "missing property 'cpu'", id="scaling by nothing"),
        pytest.param(
            {"serving.autoscaling.maxReplicas": 2, "serving.autoscaling.minReplicas": 4},
            "maxReplicas is 2, which is below",
            id="most below least",
        ),
        pytest.param(
            {"serving.disruptionBudget.minAvailable": 2},
            "no node with one of them could ever be drained",
            id="a budget that lets none go",
        ),
        pytest.param(
            {"serving.terminationGracePeriodSeconds": 10},
            "requests would be cut off",
            id="a grace that ends with the drain",
        ),
        pytest.param({"mlflow.enabled": False}, "/serving/mlflowUri", id="serving without a registry"),
        pytest.param({"training.quota.hard.pods": 50}, "/training/quota/hard/pods", id="a quantity that is no text"),
        pytest.param(
            {"training.quota.hard": {"requests.memory": "1 GB"}},
            "/training/quota/hard/requests.memory",
            id="a quantity that is none",
        ),
        pytest.param({"training.airflowAccounts": []}, "/training/airflowAccounts", id="nobody who trains"),
        pytest.param(
            {"priorityClasses.gpu.value": 2000000000},
            "/priorityClasses/gpu/value",
            id="a priority that is the system's",
        ),
        pytest.param({"serving.extraEnv": [{"name": "A-B"}]}, "/serving/extraEnv/0/name", id="a variable that is none"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(values, message):
    with pytest.raises(HelmError, match=re.escape(message)):
        render(values)


def test_mlflow_may_be_elsewhere():
    objects = render({"mlflow.enabled": False, "serving.mlflowUri": "https://mlflow.example.com"})
    assert variables(objects, "serving")["SERVING_MLFLOW_URI"] == "https://mlflow.example.com"
    assert {"port": 443, "protocol": "TCP"} in one(objects, "NetworkPolicy", "loop-serving")["spec"]["egress"][-1][
        "ports"
    ]
    assert "loop-mlflow" not in {o["metadata"]["name"] for o in objects}


def test_the_notes_say_how_to_go_on():
    notes = helm("install", "loop", CHART, "--dry-run=client", "--namespace", "ml", "--values", SITE, *values_file({}))
    for part in (
        'secret "airloop-mlflow"',
        '"airloop-serving-keys"',
        "AIRLOOP_KUBERNETES_NAMESPACE=airloop-training",
        "=airloop-gpu,*=airloop-preemptible",
    ):
        assert part in notes
    runbook = re.search(r"docs/runbooks/\w+\.md", notes)
    assert runbook and (REPOSITORY / runbook[0]).is_file()
