"""What a stage made: tables with rows, model versions, aliases, decisions, reports; found by looking before and after."""

from typing import Any

from include import ledger
from include.data import layout, tables
from include.projects.base import Project
from include.settings import get_settings
from include.trial.plan import Made

KNOW_MODELS = ("train", "deploy", "score", "monitor")  # stages after whose run MLflow is asked


def inventory(project: Project, stage: str) -> dict[str, Any]:
    """What there is, to be compared with what there is later."""
    found: dict[str, Any] = {"tables": _tables(project), "versions": {}, "aliases": {}}
    if stage in KNOW_MODELS:
        from include.registry import versions
        from include.registry.client import registry_client

        found["versions"] = {str(v.version): dict(v.tags) for v in registry_client().search_model_versions(f"name = '{project.name}'")}
        found["aliases"] = versions.aliases(project)
    return found


def made_by(project: Project, stage: str, before: dict[str, Any], *, run_id: str, cutoff: str) -> list[Made]:
    """What is there now and was not before."""
    after, found = inventory(project, stage), []
    for uri, (kind, name, version, rows) in after["tables"].items():
        earlier = before["tables"].get(uri)
        if earlier is None or earlier[2] != version:
            added = rows - earlier[3] if earlier else rows
            found.append(Made(kind, name, f"{added:,} rows{f' added, {rows:,} in all' if earlier else ''}; version {version}", uri))
    found += (
        [Made("training set", path.name, "", str(path)) for path in sorted(layout.project_root(project).glob("training/*/training_set-*.parquet"))]
        if stage == "train"
        else []
    )
    for version, tags in after["versions"].items():
        if version not in before["versions"]:
            figures = ", ".join(f"{name.removeprefix('metric.')} {value}" for name, value in sorted(tags.items()) if name.startswith("metric."))
            found.append(Made("model version", f"{project.name} {version}", f"{tags.get('candidate')}; gate: {tags.get('gate')}; {figures}", _registry()))
    for alias, version in after["aliases"].items():
        if before["aliases"].get(alias) != version:
            found.append(Made("alias", alias, f"version {version}", _registry()))
    found += [
        Made("request", request.id, f"{request.reason}: {request.state}", ledger_path())
        for request in ledger.requests(project.name)
        if request.dag_run == run_id
    ]
    found += [
        Made("decision", d["what"], f"{d['verdict']}: {'; '.join(d['reasons'])}", ledger_path())
        for d in ledger.decisions(project.name)
        if _of_stage(d, stage, cutoff)
    ]
    folder = layout.project_root(project) / "reports" / f"{project.name}__{stage}" / run_id
    found += [Made("report", page.parent.name, "", str(page)) for page in sorted(folder.glob("**/index.html"))]
    return found


def ledger_path() -> str:
    return get_settings().ledger.removeprefix("sqlite:///")


def _of_stage(decision: dict[str, Any], stage: str, cutoff: str) -> bool:
    return decision["cutoff"] == cutoff and decision["what"] == {"train": "gate"}.get(stage, stage)


def _registry() -> str:
    from include.training.tracking import tracking_uri

    return tracking_uri().removeprefix("sqlite:///")


def _tables(project: Project) -> dict[str, tuple[str, str, int, int]]:
    """URI -> kind, name, version, rows."""
    root = layout.project_root(project)
    found = {}
    for log in sorted([*root.glob("*/_delta_log"), *root.glob("*/*/_delta_log")], key=str):
        folder = log.parent
        table = tables.open_table(str(folder))
        if table is None:
            continue
        kind = {"tables": "table", "features": "feature view"}.get(folder.parent.name, "table")
        found[str(folder)] = (kind, folder.name, table.version(), table.to_pyarrow_dataset().count_rows())
    return found
