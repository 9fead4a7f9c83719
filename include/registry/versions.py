"""Model versions and their aliases. The registry defines what is deployed.

All functions are safe to repeat. MLflow does not have compare-and-set on aliases. So there is one
promoter at a time (``deploy`` runs one at a time), and every write is read back.
"""

import json
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from upath import UPath

from include import ledger
from include.data import layout
from include.projects.base import Project
from include.registry.client import registry_client
from include.registry.gate import GateVerdict, judge
from include.registry.owner import OWNER, refuse_other
from include.training import manifest
from include.training.tracking import download_model

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
# Tag of the registered model: the rollout in progress, or the last one
# (include/rollout/document.py).
ROLLOUT = "rollout"


class AliasNotMovedError(RuntimeError):
    """Raised when an alias does not point where it was just set, because of another writer."""


def judge_evaluation(project: Project, evaluation: dict[str, Any]) -> GateVerdict:
    """Return the gate's verdict on an evaluation (the content of its manifest)."""
    return judge(
        project.gate,
        project.metric,
        challenger=evaluation["challenger"],
        baseline=evaluation["baseline"],
        champion=evaluation["champion_figures"],
        rows=evaluation["judged_rows"],
    )


def register_judged(project: Project, model_uri: str) -> dict[str, Any]:
    """Register the model of a retrain request with its verdict.

    A request has one version, even if it is registered twice. A version that passed becomes
    challenger.

    Args:
        model_uri: URI of the manifest of ``refit``, which names the evaluation and the verdict.

    Returns:
        ``name``, ``version``, ``gate`` (passed or refused), ``request``, ``cutoff``, ``candidate``:
            small enough for an XCom and an event.
    """
    model_version = register_version(project, model_uri)
    if model_version.tags["gate"] == "passed":
        current = aliases(project).get(CHALLENGER)
        # A rerun of an older request must not move it back.
        if current is None or int(current) < int(model_version.version):
            move_alias(project, CHALLENGER, str(model_version.version))
    return {
        "name": project.name,
        "version": str(model_version.version),
        **{key: model_version.tags[key] for key in ("gate", "request", "cutoff", "candidate")},
    }


def register_version(project: Project, model_uri: str) -> ModelVersion:
    """Register the model of a retrain request, or find its version.

    Args:
        model_uri: as in ``register_judged``.
    """
    client = registry_client()
    model = manifest.read(model_uri)
    evaluation, verdict = manifest.read(model["evaluation"]), manifest.read(model["verdict"])
    tags = version_tags(project, model, evaluation, verdict)
    version = version_of_request(project, model["request"])
    if version is None:
        _ensure_model(project)
        # Tags and page are set in the same call, so that a crash cannot leave a version without its
        # tags.
        page = describe_version(project, tags, evaluation)
        model_id = model["model_uri"].removeprefix("models:/")
        version = client.create_model_version(
            project.name, model["model_uri"], run_id=model["run_id"], tags=tags, description=page, model_id=model_id
        )
    return version


def version_tags(
    project: Project, model: dict[str, Any], evaluation: dict[str, Any], verdict: dict[str, Any]
) -> dict[str, str]:
    champion = evaluation["champion"]
    return {
        "feature_service": evaluation["feature_service"],
        "entity": ",".join(project.entities),
        "cutoff": evaluation["cutoff"],
        "fitted_until": model["fitted_until"],
        "table_versions": json.dumps(evaluation["table_versions"], sort_keys=True),
        "git_sha": model["git_sha"],
        "airflow_run": model["dag_run"],
        "request": model["request"],
        "candidate": model["candidate"],
        "refitted": str(model["refitted"]).lower(),
        "judged_against": champion.rpartition("/")[2] if champion else "",
        "judged_rows": str(evaluation["judged_rows"]),
        # Serving loads only these files.
        "bundle_sha256": json.dumps(model["bundle_sha256"], sort_keys=True) if "bundle_sha256" in model else "",
        "gate": "passed" if verdict["passed"] else "refused",
        "gate_reasons": json.dumps(verdict["reasons"]),
        **{f"metric.{name}": f"{value:.6g}" for name, value in evaluation["challenger"].items()},
    }


def describe_version(project: Project, tags: dict[str, str], evaluation: dict[str, Any]) -> str:
    """Return the version's page in MLflow (Markdown): the verdict, its reasons, its origin."""
    reasons = "\n".join(f"- {reason}" for reason in json.loads(tags["gate_reasons"]))
    against = f"version {tags['judged_against']}" if tags["judged_against"] else "no champion (there was none)"
    refit = (
        f"fitted again on everything known by {tags['fitted_until']}"
        if tags["refitted"] == "true"
        else f"as judged, fitted until {tags['fitted_until']}"
    )
    return (
        f"**Gate: {tags['gate']}**\n\n{reasons}\n\nJudged on {tags['judged_rows']} rows against {against} and the"
        f" baseline; cutoff {tags['cutoff']}. Candidate `{tags['candidate']}`, {refit}. Plots and figures: run"
        f" {evaluation['run_id']}, `evaluation/index.html`. {project.goal}"
    )


def version_of_request(project: Project, request: str) -> ModelVersion | None:
    matches = registry_client().search_model_versions(f"name = '{project.name}' and tags.request = '{request}'")
    return min(matches, key=lambda v: int(v.version)) if matches else None


def aliases(project: Project) -> dict[str, str]:
    """Return alias -> version.

    It is empty if the model is not registered yet. An unreachable registry raises.
    """
    try:
        targets = registry_client().get_registered_model(project.name).aliases
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return {}
        raise
    return {alias: str(version) for alias, version in targets.items()}


def get_version(project: Project, version: str) -> ModelVersion:
    return registry_client().get_model_version(project.name, version)


def find_version(project: Project, version: str) -> ModelVersion | None:
    """Return a version by its number, or None if it does not exist."""
    try:
        return get_version(project, version)
    except MlflowException as error:
        if error.error_code in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)):
            return None
        raise


def newest_versions(project: Project, count: int) -> list[ModelVersion]:
    """Return the newest versions, newest first."""
    return list(
        registry_client().search_model_versions(
            f"name = '{project.name}'", max_results=count, order_by=["version_number DESC"]
        )
    )


def champion(project: Project) -> ModelVersion | None:
    """Return the deployed version.

    Return None before the first one, or if it is lost (``include.registry.lost``).
    """
    version = aliases(project).get(CHAMPION)
    return find_version(project, version) if version else None


def bundle(project: Project, version: str) -> Path:
    """Return the folder of a version's bundle on this machine, downloaded once.

    ``include.training.bundle.Bundle.load`` reads it.
    """
    return download_model(project.name, version)


def baseline_bundle(project: Project, version: str) -> UPath:
    """Return the folder of the rule-based baseline that was judged together with a version.

    It was fitted on the same rows as the judged model.
    """
    return layout.training(project, get_version(project, version).tags["request"]) / "models" / "baseline_rule"


def move_alias(project: Project, alias: str, version: str | None) -> None:
    """Point an alias at a version, or remove it if the version is None. Read it back.

    Raises:
        AliasNotMovedError: it points elsewhere right after.
        OtherInstallationError: the model belongs to another installation.
    """
    refuse_other_installation(project)
    client = registry_client()
    if version is None:
        client.delete_registered_model_alias(project.name, alias)
    else:
        client.set_registered_model_alias(project.name, alias, version)
    now = aliases(project).get(alias)
    if now != version:
        raise AliasNotMovedError(f"{project.name}: alias '{alias}' was set to {version} and points at {now}")


def tag_version(project: Project, version: str, key: str, value: str) -> None:
    refuse_other_installation(project)
    registry_client().set_model_version_tag(project.name, version, key, value)


def model_tag(project: Project, key: str) -> str | None:
    try:
        tag: str | None = registry_client().get_registered_model(project.name).tags.get(key)
        return tag
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def tag_model(project: Project, key: str, value: str) -> None:
    refuse_other_installation(project)
    registry_client().set_registered_model_tag(project.name, key, value)


def refuse_other_installation(project: Project) -> None:
    """Raise OtherInstallationError if the registered model belongs to another installation."""
    refuse_other(project, model_tag(project, OWNER))


def own_model(project: Project) -> str | None:
    """Write this installation's id on the registered model. Return the previous owner, or None."""
    before = model_tag(project, OWNER)
    registry_client().set_registered_model_tag(project.name, OWNER, ledger.installation())
    return before


def _ensure_model(project: Project) -> None:
    about = f"{project.goal}\n\nOwner: {project.owner}. Success: {project.success}"
    try:
        registry_client().create_registered_model(project.name, tags={OWNER: ledger.installation()}, description=about)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        owner = model_tag(project, OWNER)
        refuse_other(project, owner)
        if not owner:
            own_model(project)
