"""Write docs/DAGs.md from the DAGs themselves: ``make docs``. A test compares the two.

python docs/dags_page.py            # reads DAG files with tests/dags/fresh_parse.py, in a scratch
AIRFLOW_HOME
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from include.projects.base import STAGES
from include.settings import REPOSITORY, Settings
from include.stack.environment import airflow_environment

PROJECT = "flights"
HEAD = """# The DAGs

Made by `make docs` from the DAG files; a test keeps it so. Every project has each of these as `<project>__<stage>`; below, those of `flights`.
A box with double sides is mapped: one task instance for each thing that it is given. Dotted arrows between DAGs are asset events.

```mermaid
flowchart LR
{loop}
```
"""  # noqa: E501


def page(dags: dict[str, dict]) -> str:
    """Return the page, from DAG id -> serialized DAG."""
    produces = {}
    wants: dict[str, list[str]] = {}
    for stage in STAGES:
        dag = dags[f"{PROJECT}__{stage}"]["dag"]
        for task in dag["tasks"]:
            for asset in _assets(
                task["__var"].get("outlets") or task["__var"].get("partial_kwargs", {}).get("outlets") or []
            ):
                produces[asset] = stage
        wants[stage] = _assets(dag["timetable"])
    arrows = [
        f"  {produces[asset]} -. {asset.partition('.')[2]} .-> {stage}"
        for stage, assets in wants.items()
        for asset in sorted(set(assets))
        if asset in produces
    ]
    return HEAD.format(loop="\n".join(arrows)) + "".join(
        _section(stage, dags[f"{PROJECT}__{stage}"]["dag"]) for stage in STAGES
    )


def _section(stage: str, dag: dict) -> str:
    tasks = [task["__var"] for task in dag["tasks"]]
    boxes = [
        f"  {t['task_id']}[[{t['task_id']}]]" if t.get("_is_mapped") else f"  {t['task_id']}"
        for t in sorted(tasks, key=lambda t: t["task_id"])
    ]
    arrows = [
        f"  {t['task_id']} --> {after}"
        for t in sorted(tasks, key=lambda t: t["task_id"])
        for after in sorted(t.get("downstream_task_ids", []))
    ]
    docs = dag["doc_md"].strip().replace("`docs/runbooks/", "`runbooks/")
    chart = "\n".join([*boxes, *arrows])
    return (
        f"\n## {stage}\n\n{docs}\n\n[dags/{stage}.py](../dags/{stage}.py)\n\n```mermaid\nflowchart LR\n{chart}\n```\n"
    )


def _assets(node) -> list[str]:
    """Names of all assets anywhere in a piece of serialized DAG."""
    if isinstance(node, dict):
        mine = [node["name"]] if "name" in node and ("uri" in node or node.get("__type") == "asset") else []
        return mine + [name for value in node.values() for name in _assets(value)]
    if isinstance(node, list):
        return [name for value in node for name in _assets(value)]
    return []


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = airflow_environment(Settings(home=Path(home))) | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        command = [sys.executable, str(REPOSITORY / "tests" / "dags" / "fresh_parse.py"), str(REPOSITORY / "dags")]
        output = subprocess.run(
            command, env=environment, cwd=home, capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]
    (REPOSITORY / "docs" / "DAGs.md").write_text(page(json.loads(output)["dags"]))
    print("docs/DAGs.md is written")


if __name__ == "__main__":
    main()
