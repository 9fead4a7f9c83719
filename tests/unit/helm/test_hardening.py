"""The training namespace's Pod Security Standard and serving's cache, rendered by Helm."""

import re
from typing import Any

import pytest

from include.settings import REPOSITORY
from tests.helm import MISSING, PROGRAM, HelmError, one, render
from tests.unit.helm.test_chart import variables

pytestmark = pytest.mark.skipif(not PROGRAM, reason=MISSING)


def test_the_training_namespace_enforces_the_restricted_standard():
    for labels in ({}, {"team": "ml"}):
        actual = one(render({"training.namespace.labels": labels}), "Namespace")["metadata"]["labels"]
        assert (
            actual.items()
            >= {
                **labels,
                **{f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")},
            }.items()
        )


@pytest.mark.parametrize("level", ["privileged", "baseline"])
def test_a_weaker_standard_is_refused(level):
    with pytest.raises(HelmError, match=f"sets pod-security.kubernetes.io/enforce to '{level}'.*Remove the label"):
        render({"training.namespace.labels": {"pod-security.kubernetes.io/enforce": level}})


def test_every_command_that_makes_the_training_namespace_labels_it():
    """Every documented command that creates the training namespace also sets the label."""
    pages = {
        page: page.read_text() for folder in ("docs", "deploy") for page in (REPOSITORY / folder).rglob("*.md")
    } | {REPOSITORY / "README.md": (REPOSITORY / "README.md").read_text()}
    making = {page.name: text for page, text in pages.items() if "create namespace" in text}
    assert making
    for name, text in making.items():
        for namespace in re.findall(r"create namespace (airloop[\w-]*)", text):
            assert re.search(
                rf"label [^\n]*namespace [^\n]*\b{namespace}\b[^\n]* pod-security\.kubernetes\.io/enforce=restricted",
                text,
            ), (name, namespace)


def test_the_cache_is_lost_with_the_pod_or_kept_on_a_claim():
    def cache(values: dict[str, Any]) -> tuple[dict[str, str], str, list[dict[str, Any]]]:
        rendered = render(values)
        pod = one(rendered, "Deployment", "loop-serving")["spec"]["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert variables(rendered, "serving")["SERVING_CACHE"].startswith(mounts.get("cache", "/tmp"))
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        return (
            mounts,
            " ".join(claims),
            [manifest for manifest in rendered if manifest["kind"] == "PersistentVolumeClaim"],
        )

    mounts, claim, made = cache({})
    assert "cache" not in mounts and not claim and not made
    mounts, claim, made = cache(
        {"serving.cache.persistence": {"enabled": True, "existingClaim": "", "storageClassName": "nfs", "size": "7Gi"}}
    )
    assert mounts["cache"] == "/var/lib/serving" and claim == made[0]["metadata"]["name"] == "loop-serving-cache"
    # Several replicas on several nodes write to it.
    assert made[0]["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "nfs",
        "resources": {"requests": {"storage": "7Gi"}},
    }
    mounts, claim, made = cache(
        {"serving.cache.persistence.enabled": True, "serving.cache.persistence.existingClaim": "mine"}
    )
    assert claim == "mine" and not made


def test_a_volume_is_the_group_s_of_the_container():
    pod = one(render({"serving.cache.persistence.enabled": True}), "Deployment", "loop-serving")["spec"]["template"][
        "spec"
    ]["securityContext"]
    assert (pod["fsGroup"], pod["runAsGroup"], pod["fsGroupChangePolicy"]) == (10001, 10001, "OnRootMismatch")
