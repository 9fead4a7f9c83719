"""The tab "Report" of a task instance: what a task wrote into its report folder (Data Docs, drift, evaluation), for those who may read the DAG.

Every Airflow component loads plugins, so this module imports nothing but the plugin's base class: the app is built at its first request,
which only the API server gets. Apps of plugins are open to the world unless they say otherwise; here every route asks Airflow's auth manager, whichever it is.

A report is not trusted: every answer, errors too, is sandboxed (include/dag_kit/report_pages.py, ADR 45).
"""

import logging
from functools import cache

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)
PREFIX = "/airloop"
WHO_WRITES = (
    "<p>A task shows its report here when it wrote an <code>index.html</code> into its report folder: the validation of <code>ingest</code> and "
    "<code>build_features</code>, the evaluation of <code>train</code>, the drift of <code>monitor</code>.</p>"
)


def read_report(dag_id: str, run_id: str, task_id: str, path: str) -> tuple[bytes, str] | None:
    """A file of a task's report and its media type; None if there is none, or if the names try to leave the report's folder.

    Raises:
        NoSuchConnection, StorageUnavailable: reports lie on an object store that cannot be read.
    """
    from mimetypes import guess_type

    from include.dag_kit.storage import hand_on_storage
    from include.data import layout, storage
    from include.projects import get_project, project_names

    names = [dag_id, run_id, task_id, *(path or "index.html").split("/")]
    if any(name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name for name in names):
        return None
    project = dag_id.partition("__")[0]
    if project not in project_names():
        return None
    hand_on_storage()
    content = storage.read_below(layout.report(get_project(project), dag_id, run_id, task_id), names[3:])
    return None if content is None else (content, guess_type(names[-1])[0] or "application/octet-stream")


@cache
def _app():
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from fastapi import Depends, FastAPI, Response
    from fastapi.responses import HTMLResponse

    from include.dag_kit import report_pages
    from include.dag_kit.pages import logged_in, may_read
    from include.dag_kit.storage import NoSuchConnection
    from include.data.pages import SCRIPTS_SUFFIX, Markup, fill
    from include.data.storage import StorageUnavailable

    # For every route that there is or will be; what a route needs beyond a login, it says itself. No openapi_url: so no pages of documentation.
    app = FastAPI(title="Airloop", openapi_url=None, dependencies=[Depends(logged_in)])

    @app.get("/report/{dag_id}/{run_id}/{task_id}/{path:path}", dependencies=[Depends(may_read(DagAccessEntity.TASK_INSTANCE))])
    def report(dag_id: str, run_id: str, task_id: str, path: str) -> Response:
        scripts: list[str] = []
        try:
            found = read_report(dag_id, run_id, task_id, path)
            if found is not None and found[1] == "text/html":
                listed = read_report(dag_id, run_id, task_id, (path or "index.html") + SCRIPTS_SUFFIX)
                scripts = report_pages.scripts_of(listed and listed[0])
        except (NoSuchConnection, StorageUnavailable) as error:
            log.error("report of %r %r %r: %s", dag_id, run_id, task_id, error)  # the store's address and key are for operators
            what = fill("<p>The store in which the reports lie cannot be read; the API server's log says why.</p>")
            return HTMLResponse(report_pages.message("No report here", what + Markup(WHO_WRITES)), status_code=503)
        if found is None:
            what = fill("<p>The task <b>{}</b> of <b>{}</b> made no report in the run <b>{}</b>, or has not made it yet.</p>", task_id, dag_id, run_id)
            return HTMLResponse(report_pages.message("No report here", what + Markup(WHO_WRITES)), status_code=404)
        content, media_type = found
        if media_type == "text/html":
            return HTMLResponse(report_pages.framed(content), headers=report_pages.headers(scripts))
        kept = {} if media_type in report_pages.SHOWN else {"Content-Disposition": "attachment"}
        return Response(content, media_type=media_type, headers=kept)

    @app.get("/installation")
    def installation() -> dict[str, str | None]:
        """Which installation this Airflow works for; commands of another one see that they have reached the wrong one."""
        from include import ledger

        return {"installation": ledger.known_installation()}

    return report_pages.with_headers(app, report_pages.headers())


async def _app_when_asked(scope, receive, send) -> None:
    await _app()(scope, receive, send)


class AirloopReports(AirflowPlugin):
    name = "airloop_reports"
    fastapi_apps = [{"app": _app_when_asked, "url_prefix": PREFIX, "name": "Airloop"}]
    external_views = [
        {
            "name": "Report",
            # Relative, so that it holds below any base URL; the UI encodes the names. All instances of a mapped task share their task's report.
            "href": f"{PREFIX[1:]}/report/{{DAG_ID}}/{{RUN_ID}}/{{TASK_ID}}/",
            "destination": "task_instance",
            "url_route": "report",
        }
    ]
