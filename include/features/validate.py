"""Features are validated before they are published: what breaks an expectation is not served and not trained on."""

from include.data import layout, storage
from include.data.validation import validate
from include.features import build
from include.projects.base import Project


class FeaturesInvalid(ValueError):
    """Computed features break their expectations; nothing of this cutoff is published."""


def validate_staged(project: Project, cutoff: str, *, dag_id: str, run_id: str, task_id: str) -> dict[str, int]:
    """Run each view's suite over its staged rows and write the Data Docs pages as the task's report.

    Returns:
        View name -> rows that were looked at.

    Raises:
        FeaturesInvalid: an expectation that is more than a warning does not hold; names view, rule and count.
    """
    folder, problems, looked_at = layout.report(project, dag_id, run_id, task_id), [], {}
    lines = []
    for view, rows in build.staged_views(project, cutoff).items():
        looked_at[view] = len(rows)
        if rows.empty:
            continue
        validation = validate(f"{project.name}.{view}", rows, project.module("expectations").feature_suite(view))
        storage.write(folder / f"{view}.html", validation.page)
        problems += [f"view {view}: {broken.message}" for broken in validation.broken if not broken.warning]
        state = "; ".join(broken.message for broken in validation.broken) or "holds"
        lines.append(f'<tr><td><a href="{view}.html" target="_self">{view}</a><td>{len(rows):,} rows<td>{validation.expectations} expectations<td>{state}')
    storage.write(
        folder / "index.html",
        f"<!doctype html><meta charset=utf-8><body style='font:14px system-ui;margin:1.5rem'><h1>{project.name}: features up to {cutoff}</h1>"
        f"<table cellpadding=6>{''.join(lines)}</table>" + ("" if lines else "<p>Nothing new to validate.</p>"),
    )  # fmt: skip
    if problems:
        raise FeaturesInvalid("nothing is published:\n" + "\n".join(problems))
    return looked_at
