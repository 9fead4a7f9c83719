"""Every image in the repository is named by its digest, because a tag can move to another image.

Our own images are built here. In Compose they are local. On Kubernetes the site must set their
digest as a value.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException
from pydantic import ValidationError

from include.dag_kit.pods.names import PodStep
from include.dag_kit.pods.operator import StepPod
from include.projects.compute import ComputeClass
from include.settings import REPOSITORY, Settings
from tests.helm import MISSING, PROGRAM, HelmError, one, render
from tests.unit.helm.test_secrets import settings

DIGEST = r"@sha256:[0-9a-f]{64}"
PINNED = "registry.example.org/airloop-training@sha256:" + "a" * 64
# An image with a registry prefix counts as a reference in every file.
REFERENCE = r"\b(?:docker\.io|quay\.io|ghcr\.io|gcr\.io|registry\.k8s\.io|public\.ecr\.aws|mcr\.microsoft\.com)/[a-z0-9][a-z0-9._/-]*[a-z0-9](?:[:@][\w.@:-]+)?"  # noqa: E501
BUILT_HERE = r"airloop-(airflow|mlflow|serving|training):\$\{IMAGE_TAG:-compose\}"


def of_compose(text: str) -> Iterator[str]:
    for name, service in yaml.safe_load(text)["services"].items():
        default = re.fullmatch(r"\$\{[A-Z_]+:-(.+)\}", service["image"])
        image = default[1] if default else service["image"]
        if not re.fullmatch(BUILT_HERE, image) and not re.search(DIGEST + "$", image):
            yield f"{name}: {image}"


def of_dockerfile(text: str) -> Iterator[str]:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    stages = set(re.findall(r"^FROM .* AS (\w+)", text, re.MULTILINE))
    # Stages are copied from by name. `# syntax=` names an image, too.
    named = (
        re.findall(r"^FROM(?: --\S+)* (\S+)", text, re.MULTILINE)
        + re.findall(r"--from=(\S+)", text)
        + re.findall(r"^# *syntax=(\S+)", text, re.MULTILINE)
    )
    for image in named:
        reference = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), image)
        if reference not in stages and not re.search(DIGEST + "$", reference):
            yield f"{image}: {reference}"


def references(text: str) -> Iterator[str]:
    yield from (reference for reference in re.findall(REFERENCE, text) if not re.search(DIGEST, reference))


def files(*suffixes: str) -> list[Path]:
    """Return the repository's files without tests and prose."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        REPOSITORY / name
        for name in listed
        if name.endswith(suffixes) and not name.startswith(("tests/", "docs/")) and (REPOSITORY / name).is_file()
    ]


def test_compose():
    assert list(of_compose((REPOSITORY / "docker-compose.yaml").read_text())) == []


@pytest.mark.parametrize("file", files("Dockerfile"), ids=lambda file: file.parent.name)
def test_a_dockerfile(file):
    assert list(of_dockerfile(file.read_text())) == []


def test_no_other_file_names_an_image_by_its_tag():
    candidates = files("Dockerfile", ".yaml", ".yml", ".py", ".tpl", ".example", "Makefile", "run")
    assert (
        len(candidates) > 100
        and {
            str(file.relative_to(REPOSITORY)): names
            for file in candidates
            if (names := list(references(file.read_text())))
        }
        == {}
    )


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (of_compose, "services: {x: {image: 'docker.io/library/redis:7.4.9'}}"),
        (of_compose, "services: {x: {image: '${X_IMAGE:-docker.io/library/redis:7.4.9}'}}"),
        (of_compose, "services: {x: {image: 'airloop-other:1'}}"),
        (of_dockerfile, "ARG BASE=python:3.11\nFROM ${BASE}\n"),
        (of_dockerfile, "FROM --platform=linux/amd64 python:3.11\n"),
        (of_dockerfile, f"FROM x{PINNED[-72:]} AS one\nCOPY --from=ghcr.io/astral-sh/uv:0.13 /uv /uv\n"),
        (of_dockerfile, f"# syntax=docker/dockerfile:1\nFROM x{PINNED[-72:]}\n"),
        (references, "image: quay.io/prometheus/statsd-exporter:v0.30.0"),
        (references, "image: docker.io/library/alpine"),
    ],
)
def test_an_image_without_a_digest_is_seen(check, text):
    assert len(list(check(text))) == 1


# --- on Kubernetes --------------------------------------------------------------------------------


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
@pytest.mark.parametrize("part", ["mlflow", "serving"])
def test_our_chart_wants_a_digest(part):
    (container,) = one(render(), "Deployment", f"loop-{part}")["spec"]["template"]["spec"]["containers"]
    assert re.search(":0000000" + DIGEST + "$", container["image"])
    with pytest.raises(HelmError, match=rf"{part}\.image\.digest is not set: a tag can move"):
        render({f"{part}.image.digest": ""})
    with pytest.raises(HelmError, match=f"/{part}/image/digest"):
        render({f"{part}.image.digest": "sha256:short"})


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
def test_an_image_of_the_nodes_is_never_pulled():
    rendered = render({"serving.image.digest": "", "serving.image.local": True, "serving.image.pullPolicy": "Always"})
    deployment = one(rendered, "Deployment", "loop-serving")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith("/airloop-serving:0000000") and container["imagePullPolicy"] == "Never"


@pytest.mark.parametrize(
    "image", ["registry.example.org/airloop-training:1", "airloop-training", "x@sha256:123", PINNED + ":latest"]
)
def test_training_pods_run_an_image_by_its_digest(image, monkeypatch):
    assert settings(training_image=PINNED).training_image == PINNED
    with pytest.raises(ValidationError, match="AIRLOOP_TRAINING_IMAGE is '.*', and a tag can move"):
        settings(training_image=image)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    step = PodStep("flights", "r1", "fit-mlp", "s3://bucket/fit-mlp.json", "gpu_a", "0123abc", None)
    with pytest.raises(AirflowFailException, match="the image of compute class gpu_a is '"):
        StepPod(
            task_id="fit",
            step=step,
            resources=ComputeClass(image=image),
            command=["true"],
            settings=settings(training_image=PINNED),
        )
    # A machine's own cluster, where images are loaded onto the node.
    assert Settings(training_image=image).training_image == image
