"""The state of a rollout: a page for the task's Report tab, and Markdown for the approver."""

import json
from typing import Any
from urllib.parse import quote

from upath import UPath

from include.data import layout
from include.data.pages import markdown
from include.projects.base import Project
from include.registry import versions
from include.reporting import page
from include.rollout.document import Rollout, rollout_document
from include.rollout.steps import advance, describe, looks
from include.settings import get_settings


def advance_and_report(
    project: Project, version: str, chosen: dict[str, Any], cutoff: str, dag_id: str, run_id: str, task_id: str
) -> bool:
    """Advance a rollout and write its page, also on failure. Return whether its steps are over.

    Raises the same errors as ``advance``.
    """
    try:
        progress = advance(project, version, dag_run=run_id, cutoff=cutoff, by_person=chosen["by_person"])
        print(progress.message)  # into the task's log
        return progress.done
    finally:
        write_report(project, version, run_id, layout.report(project, dag_id, run_id, task_id))


def write_report(project: Project, version: str, dag_run: str, folder: str | UPath) -> None:
    """Write the page of a rollout as ``index.html`` of the folder."""
    rollout = _of(project, version, dag_run)
    tags = versions.get_version(project, version).tags
    state = paragraph_of(project, version, rollout)
    bad = rollout is not None and rollout.state in ("rolled_back", "rolling_back", "overtaken", "paused")
    sections = [page.paragraph(state, "no" if bad else ""), page.table(["", ""], _facts(version, tags))]
    if project.rollout.steps:
        done = rollout.step if rollout else 0
        rows = [
            (number + 1, describe(step), step.looks, _progress(number, done, rollout))
            for number, step in enumerate(project.rollout.steps)
        ]
        sections.append(page.table(["step", "who is asked", "looks", ""], rows))
    results = [row for look in (looks(project, rollout) if rollout else []) for row in _rows(look)]
    if results:
        sections.append(page.table(["look", "rule", "", "found"], results))
    page.write_page(folder, page.page(f"{project.name}: rollout of version {version}", *sections))


def approval_text(project: Project, version: str, dag_run: str) -> str:
    """Return Markdown: the gate's verdict and metrics, each look's result, links to details.

    Tags and reasons are escaped.
    """
    tags = versions.get_version(project, version).tags
    champion = versions.aliases(project).get(versions.CHAMPION)
    rollout = _of(project, version, dag_run)
    facts = "\n".join(f"| {markdown(name)} | {markdown(value)} |" for name, value in _facts(version, tags))
    intro = (
        f"Version **{markdown(version)}** of **{markdown(project.name)}** is to answer everybody, in the place of"
        f" version {markdown(champion or 'none')}."
    )
    parts = [intro, f"| | |\n|---|---|\n{facts}"]
    gate = "\n".join(f"- {markdown(reason)}" for reason in _gate_reasons(tags))
    parts.append(f"**Gate: {markdown(tags.get('gate', 'not judged'))}**\n\n{gate}")
    results = [row for look in (looks(project, rollout) if rollout else []) for row in _rows(look)]
    if results:
        rows = "\n".join(f"| {' | '.join(map(markdown, row))} |" for row in results)
        parts.append(f"**On real requests**\n\n| look | rule | | found |\n|---|---|---|---|\n{rows}")
    else:
        parts.append("It has answered no real request yet: the project's rollout has no steps.")
    settings = get_settings()
    links = [
        f"[the version in MLflow]({settings.mlflow_url}/#/models/{project.name}/versions/{quote(version, safe='')})"
    ]
    if run := tags.get("airflow_run"):
        links.append(
            "[its evaluation, with"
            f" plots]({settings.airflow_url}/airloop/report/{project.name}__train/{quote(run, safe='')}/evaluate/)"
        )
    parts.append("More: " + ", ".join(links))
    return "\n\n".join(parts)


def _gate_reasons(tags: dict[str, str]) -> list[Any]:
    try:
        reasons = json.loads(tags.get("gate_reasons") or "[]")
    except ValueError:
        return [f"not readable: {tags['gate_reasons'][:200]}"]
    return reasons if isinstance(reasons, list) else [reasons]


def paragraph_of(project: Project, version: str, rollout: Rollout | None) -> str:
    """Return the state of a rollout in one line."""
    if rollout is None:
        return f"The rollout of version {version} has not begun, or is over and another one has come."
    reason = f": {rollout.reason}" if rollout.reason else ""
    if rollout.state == "trying":
        return (
            f"Version {version} is tried since {rollout.tried_since or rollout.written} beside version"
            f" {rollout.previous}{reason}."
        )
    return f"Version {version}: {rollout.state.replace('_', ' ')}{reason}."


def _of(project: Project, version: str, dag_run: str) -> Rollout | None:
    rollout = rollout_document(project)
    return rollout if rollout is not None and rollout.is_of(version, dag_run) else None


def _facts(version: str, tags: dict[str, str]) -> list[tuple[str, str]]:
    labels = {
        "candidate": "candidate",
        "cutoff": "trained on what was known by",
        "judged_rows": "judged on rows",
        "judged_against": "judged against version",
    }
    facts = [("version", version), *((text, tags[name]) for name, text in labels.items() if tags.get(name))]
    return [
        *facts,
        *((name.removeprefix("metric."), value) for name, value in sorted(tags.items()) if name.startswith("metric.")),
    ]


def _progress(number: int, done: int, rollout: Rollout | None) -> str:
    if rollout is None or number > done:
        return ""
    return (
        "passed"
        if number < done
        else f"{rollout.passed} looks passed"
        + (f", {rollout.inconclusive} came to nothing" if rollout.inconclusive else "")
    )


def _rows(look: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    where = ", ".join(look["subject"].rsplit(", ", 2)[-2:])
    return [(where, *_split(reason, look["verdict"])) for reason in look["reasons"]]


def _split(reason: str, verdict: str) -> tuple[str, str, str]:
    rule, _, rest = reason.partition(": ")
    word, _, text = rest.partition(": ")
    return (rule, word, text) if text else ("", verdict, reason)
