"""Validate features before publication. Rows that fail are neither served nor trained on."""

from include.data import age, layout
from include.data.pages import document, embedded, fill, join, write_report_page
from include.data.validation import validate
from include.features import build
from include.projects.base import Project

STYLE = """body{font:14px/1.5 system-ui,sans-serif;margin:1.5rem;max-width:75rem}table{border-collapse:collapse}td{padding:.3rem .7rem;vertical-align:top;
border-bottom:1px solid #e4e8ec}details{margin:.5rem 0}summary{cursor:pointer;color:#2563eb}iframe{width:100%;height:70vh;border:1px solid #e4e8ec}"""  # noqa: E501


class InvalidFeaturesError(ValueError):
    """Raised when computed features break expectations. Nothing of this cutoff is published."""


def validate_staged(project: Project, cutoff: str, *, dag_id: str, run_id: str, task_id: str) -> dict[str, int]:
    """Run each view's suite over its staged rows.

    The task's report is written with their Data Docs pages.

    Returns:
        View name -> number of rows checked.

    Raises:
        InvalidFeaturesError: an expectation of a severity above warning is broken. The message
            names view, rule and count.
    """
    folder, problems, looked_at = layout.report(project, dag_id, run_id, task_id), [], {}
    lines, docs = [], []
    for view, rows in build.staged_views(project, cutoff).items():
        looked_at[view] = len(rows)
        if rows.empty:
            continue
        validation = validate(f"{project.name}.{view}", rows, project.module("expectations").feature_suite(view))
        problems += [f"view {view}: {broken.message}" for broken in validation.broken if not broken.warning]
        state = "; ".join(broken.message for broken in validation.broken) or "holds"
        lines.append(
            fill("<tr><td>{}<td>{:,} rows<td>{} expectations<td>{}", view, len(rows), validation.expectations, state)
        )
        docs.append(
            fill("<details><summary>{}</summary>{}</details>", view, embedded(validation.page, f"Data Docs of {view}"))
        )
    head = fill("<h1>{}: features up to {}</h1>", project.name, cutoff)
    late = age.warning(project, cutoff)
    body = [fill("<p><strong>Warning</strong>: {}</p>", late)] if late else []
    body += (
        [fill("<table>{}</table><h2>Great Expectations</h2>", join(lines)), *docs]
        if lines
        else [fill("<p>Nothing new to validate.</p>")]
    )
    write_report_page(folder, document(f"{project.name}: features", head, *body, style=STYLE))
    if problems:
        raise InvalidFeaturesError("nothing is published:\n" + "\n".join(problems))
    return looked_at
