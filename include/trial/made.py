"""Find the results of a stage by comparing the state before and after it.

Results are tables with rows, model versions, aliases, decisions and reports.
"""

from typing import Any

from include import ledger
from include.data import layout, tables
from include.projects.base import Project
from include.settings import get_settings
from include.trial.plan import Made

# Stages after which MLflow is queried.
KNOW_MODELS = ("train", "deploy", "score", "monitor")


def inventory(project: Project, stage: str) -> dict[str, Any]:
    """Return the current state, for comparison with a later one."""
    state: dict[str, Any] = {"tables": _tables(project), "versions": {}, "aliases": {}}
    if stage in KNOW_MODELS:
        from include.registry import versions
        from include.registry.client import registry_client

        state["versions"] = {
            str(v.version): dict(v.tags) for v in registry_client().search_model_versions(f"name = '{project.name}'")
        }
        state["aliases"] = versions.aliases(project)
    return state


def made_by(project: Project, stage: str, before: dict[str, Any], *, run_id: str, cutoff: str) -> list[Made]:
    """Return the results that exist now and did not exist before."""
    after, results = inventory(project, stage), []
    for uri, (kind, name, version, rows) in after["tables"].items():
        earlier = before["tables"].get(uri)
        if earlier is None or earlier[2] != version:
            added = rows - earlier[3] if earlier else rows
            results.append(
                Made(
                    kind, name, f"{added:,} rows{f' added, {rows:,} in all' if earlier else ''}; version {version}", uri
                )
            )
    results += (
        [
            Made("training set", path.name, "", str(path))
            for path in sorted(layout.project_root(project).glob("training/*/training_set-*.parquet"))
        ]
        if stage == "train"
        else []
    )
    for version, tags in after["versions"].items():
        if version not in before["versions"]:
            figures = ", ".join(
                f"{name.removeprefix('metric.')} {value}"
                for name, value in sorted(tags.items())
                if name.startswith("metric.")
            )
            results.append(
                Made(
                    "model version",
                    f"{project.name} {version}",
                    f"{tags.get('candidate')}; gate: {tags.get('gate')}; {figures}",
                    _registry(),
                )
            )
    for alias, version in after["aliases"].items():
        if before["aliases"].get(alias) != version:
            results.append(Made("alias", alias, f"version {version}", _registry()))
    results += [
        Made("request", request.id, f"{request.reason}: {request.state}", ledger_path())
        for request in ledger.requests(project.name)
        if request.dag_run == run_id
    ]
    results += [
        Made("decision", d["what"], f"{d['verdict']}: {'; '.join(d['reasons'])}", ledger_path())
        for d in ledger.decisions(project.name)
        if _of_stage(d, stage, cutoff)
    ]
    folder = layout.project_root(project) / "reports" / f"{project.name}__{stage}" / run_id
    results += [Made("report", page.parent.name, "", str(page)) for page in sorted(folder.glob("**/index.html"))]
    return results


def ledger_path() -> str:
    return get_settings().ledger.removeprefix("sqlite:///")


def _of_stage(decision: dict[str, Any], stage: str, cutoff: str) -> bool:
    matches: bool = decision["cutoff"] == cutoff and decision["what"] == {"train": "gate"}.get(stage, stage)
    return matches


def _registry() -> str:
    from include.training.tracking import tracking_uri

    return tracking_uri().removeprefix("sqlite:///")


def _tables(project: Project) -> dict[str, tuple[str, str, int, int]]:
    """Return URI -> kind, name, version, rows."""
    root = layout.project_root(project)
    descriptions = {}
    for log in sorted([*root.glob("*/_delta_log"), *root.glob("*/*/_delta_log")], key=str):
        folder = log.parent
        table = tables.open_table(str(folder))
        if table is None:
            continue
        kind = {"tables": "table", "features": "feature view"}.get(folder.parent.name, "table")
        descriptions[str(folder)] = (kind, folder.name, table.version(), table.to_pyarrow_dataset().count_rows())
    return descriptions
