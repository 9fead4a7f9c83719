"""Model versions and their aliases. What is deployed is what the registry says; everything here is safe to repeat.

MLflow has no compare-and-set on aliases: one promoter at a time (``deploy`` runs one at a time), and every write is read back.
"""

import json
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from upath import UPath

from include import ledger
from include.data import layout
from include.projects.base import Project
from include.registry.client import registry_client
from include.registry.gate import Verdict, judge
from include.registry.owner import OWNER, refuse_other
from include.training import manifest
from include.training.tracking import download_model

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ROLLOUT = "rollout"  # tag of the registered model: the rollout in progress, or the last one (include/rollout/document.py)


class AliasNotMoved(RuntimeError):
    """An alias does not point where it was just put: somebody else writes too."""


def judge_evaluation(project: Project, evaluation: dict[str, Any]) -> Verdict:
    """The gate's verdict on an evaluation (the content of its manifest)."""
    return judge(
        project.gate, project.metric,
        challenger=evaluation["challenger"], baseline=evaluation["baseline"], champion=evaluation["champion_figures"], rows=evaluation["judged_rows"],
    )  # fmt: skip


def register_judged(project: Project, model_uri: str) -> dict[str, Any]:
    """Register the model of a retrain request, with its verdict; one version a request, whatever runs twice. One that passed becomes challenger.

    Args:
        model_uri: URI of the manifest of ``refit``, which names the evaluation and the verdict.

    Returns:
        ``name``, ``version``, ``gate`` (passed or refused), ``request``, ``cutoff``, ``candidate``: small enough for an XCom and an event.
    """
    found = register_version(project, model_uri)
    if found.tags["gate"] == "passed":
        current = aliases(project).get(CHALLENGER)
        if current is None or int(current) < int(found.version):  # a rerun of an older request takes nothing back
            move_alias(project, CHALLENGER, str(found.version))
    return {"name": project.name, "version": str(found.version), **{key: found.tags[key] for key in ("gate", "request", "cutoff", "candidate")}}


def register_version(project: Project, model_uri: str) -> ModelVersion:
    """Register the model of a retrain request, or find its version.

    Args:
        model_uri: as in ``register_judged``.
    """
    client = registry_client()
    model = manifest.read(model_uri)
    evaluation, verdict = manifest.read(model["evaluation"]), manifest.read(model["verdict"])
    tags = version_tags(project, model, evaluation, verdict)
    found = version_of_request(project, model["request"])
    if found is None:
        _ensure_model(project)
        # Tags and page come with the version in one call: a kill in between leaves no version that is not found again.
        page = describe_version(project, tags, evaluation)
        model_id = model["model_uri"].removeprefix("models:/")
        found = client.create_model_version(project.name, model["model_uri"], run_id=model["run_id"], tags=tags, description=page, model_id=model_id)
    return found


def version_tags(project: Project, model: dict[str, Any], evaluation: dict[str, Any], verdict: dict[str, Any]) -> dict[str, str]:
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
        "bundle_sha256": json.dumps(model["bundle_sha256"], sort_keys=True) if "bundle_sha256" in model else "",  # serving loads no other files
        "gate": "passed" if verdict["passed"] else "refused",
        "gate_reasons": json.dumps(verdict["reasons"]),
        **{f"metric.{name}": f"{value:.6g}" for name, value in evaluation["challenger"].items()},
    }


def describe_version(project: Project, tags: dict[str, str], evaluation: dict[str, Any]) -> str:
    """The version's page in MLflow (Markdown): the verdict, its reasons, where it comes from."""
    reasons = "\n".join(f"- {reason}" for reason in json.loads(tags["gate_reasons"]))
    against = f"version {tags['judged_against']}" if tags["judged_against"] else "no champion (there was none)"
    refit = f"fitted again on everything known by {tags['fitted_until']}" if tags["refitted"] == "true" else f"as judged, fitted until {tags['fitted_until']}"
    return (
        f"**Gate: {tags['gate']}**\n\n{reasons}\n\n"
        f"Judged on {tags['judged_rows']} rows against {against} and the baseline; cutoff {tags['cutoff']}. "
        f"Candidate `{tags['candidate']}`, {refit}. Plots and figures: run {evaluation['run_id']}, `evaluation/index.html`. {project.goal}"
    )


def version_of_request(project: Project, request: str) -> ModelVersion | None:
    found = registry_client().search_model_versions(f"name = '{project.name}' and tags.request = '{request}'")
    return min(found, key=lambda v: int(v.version)) if found else None


def aliases(project: Project) -> dict[str, str]:
    """Alias -> version. Empty if the model is not registered yet; an unreachable registry raises."""
    try:
        found = registry_client().get_registered_model(project.name).aliases
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


def get_version(project: Project, version: str) -> ModelVersion:
    return registry_client().get_model_version(project.name, version)


def find_version(project: Project, version: str) -> ModelVersion | None:
    """A version by its number, or None."""
    try:
        return get_version(project, version)
    except MlflowException as error:
        if error.error_code in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)):
            return None
        raise


def newest_versions(project: Project, count: int) -> list[ModelVersion]:
    """The newest ones, newest first."""
    return list(registry_client().search_model_versions(f"name = '{project.name}'", max_results=count, order_by=["version_number DESC"]))


def champion(project: Project) -> ModelVersion | None:
    """The version that is deployed; None before the first one, or if it is lost (``include.registry.lost``)."""
    version = aliases(project).get(CHAMPION)
    return find_version(project, version) if version else None


def bundle(project: Project, version: str) -> Path:
    """The folder of a version's bundle on this machine, downloaded once. ``include.training.bundle.Bundle.load`` reads it."""
    return download_model(project.name, version)


def baseline_bundle(project: Project, version: str) -> UPath:
    """The folder of the rule-based baseline that a version was judged beside (fitted on the same rows as the judged model)."""
    return layout.training(project, get_version(project, version).tags["request"]) / "models" / "baseline_rule"


def move_alias(project: Project, alias: str, version: str | None) -> None:
    """Point an alias at a version (None: take it away), and read it back.

    Raises:
        AliasNotMoved: it points elsewhere right after.
        OtherInstallation: the model belongs to another installation.
    """
    refuse_other_installation(project)
    client = registry_client()
    if version is None:
        client.delete_registered_model_alias(project.name, alias)
    else:
        client.set_registered_model_alias(project.name, alias, version)
    now = aliases(project).get(alias)
    if now != version:
        raise AliasNotMoved(f"{project.name}: alias '{alias}' was set to {version} and points at {now}")


def tag_version(project: Project, version: str, key: str, value: str) -> None:
    refuse_other_installation(project)
    registry_client().set_model_version_tag(project.name, version, key, value)


def model_tag(project: Project, key: str) -> str | None:
    try:
        return registry_client().get_registered_model(project.name).tags.get(key)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def tag_model(project: Project, key: str, value: str) -> None:
    refuse_other_installation(project)
    registry_client().set_registered_model_tag(project.name, key, value)


def refuse_other_installation(project: Project) -> None:
    """Raises OtherInstallation if the registered model belongs to another installation."""
    refuse_other(project, model_tag(project, OWNER))


def own_model(project: Project) -> str | None:
    """Write this installation's id on the registered model; gives whose it was before."""
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
