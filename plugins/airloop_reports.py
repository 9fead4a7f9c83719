"""Add the tab "Report" to task instances.

The tab shows the files that a task wrote into its report folder (Data Docs, drift, evaluation) to
users who may read the DAG.

Every Airflow component loads plugins, so this module imports only the plugin's base class. The app
is built at its first request, which only the API server receives. Airflow does not protect the apps
of plugins. Here every route asks Airflow's configured auth manager.

Reports are not trusted. Every response is sandboxed, including errors
(include/dag_kit/report_pages.py, ADR 45).
"""

import logging
from functools import cache

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)
PREFIX = "/airloop"
WHO_WRITES = (
    "<p>A task shows its report here when it wrote an <code>index.html</code> into its report folder: the validation of"
    " <code>ingest</code> and <code>build_features</code>, the evaluation of <code>train</code>, the drift of"
    " <code>monitor</code>.</p>"
)


def read_report(dag_id: str, run_id: str, task_id: str, path: str) -> tuple[bytes, str] | None:
    """Return a file of a task's report and its media type.

    Return None if the file does not exist, or if the names would leave the report's folder.

    Raises:
        ConnectionNotFoundError, StorageUnavailableError: The object store with the reports cannot
            be read.
    """
    from mimetypes import guess_type

    from include.dag_kit.storage import export_storage_env
    from include.data import layout, storage
    from include.projects import get_project, project_names

    names = [dag_id, run_id, task_id, *(path or "index.html").split("/")]
    if any(name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name for name in names):
        return None
    project = dag_id.partition("__")[0]
    if project not in project_names():
        return None
    export_storage_env()
    content = storage.read_below(layout.report(get_project(project), dag_id, run_id, task_id), names[3:])
    return None if content is None else (content, guess_type(names[-1])[0] or "application/octet-stream")


@cache
def _app():
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from fastapi import Depends, FastAPI, Response
    from fastapi.responses import HTMLResponse

    from include.dag_kit import report_pages
    from include.dag_kit.pages import logged_in, may_read
    from include.dag_kit.storage import ConnectionNotFoundError
    from include.data.pages import SCRIPTS_SUFFIX, Markup, fill
    from include.data.storage import StorageUnavailableError

    # The dependency protects every route, also future ones. A route declares itself any permission
    # that it needs beyond a login. Without `openapi_url` FastAPI serves no documentation pages.
    app = FastAPI(title="Airloop", openapi_url=None, dependencies=[Depends(logged_in)])

    @app.get(
        "/report/{dag_id}/{run_id}/{task_id}/{path:path}",
        dependencies=[Depends(may_read(DagAccessEntity.TASK_INSTANCE))],
    )
    def report(dag_id: str, run_id: str, task_id: str, path: str) -> Response:
        scripts: list[str] = []
        try:
            file = read_report(dag_id, run_id, task_id, path)
            if file is not None and file[1] == "text/html":
                listed = read_report(dag_id, run_id, task_id, (path or "index.html") + SCRIPTS_SUFFIX)
                scripts = report_pages.scripts_of(listed and listed[0])
        except (ConnectionNotFoundError, StorageUnavailableError) as error:
            # The store's address and key appear only in the log, which operators read.
            log.error("report of %r %r %r: %s", dag_id, run_id, task_id, error)
            what = fill("<p>The store in which the reports lie cannot be read; the API server's log says why.</p>")
            return HTMLResponse(report_pages.message("No report here", what + Markup(WHO_WRITES)), status_code=503)
        if file is None:
            what = fill(
                "<p>The task <b>{}</b> of <b>{}</b> made no report in the run <b>{}</b>, or has not made it yet.</p>",
                task_id,
                dag_id,
                run_id,
            )
            return HTMLResponse(report_pages.message("No report here", what + Markup(WHO_WRITES)), status_code=404)
        content, media_type = file
        if media_type == "text/html":
            return HTMLResponse(report_pages.framed(content), headers=report_pages.headers(scripts))
        kept = {} if media_type in report_pages.SHOWN else {"Content-Disposition": "attachment"}
        return Response(content, media_type=media_type, headers=kept)

    @app.get("/installation")
    def installation() -> dict[str, str | None]:
        """Return the id of the installation that this Airflow belongs to.

        Commands of another installation compare it and stop if they reached the wrong Airflow.
        """
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
            # The link is relative, so that it works below any base URL. The UI encodes the names.
            # All instances of a mapped task share one report.
            "href": f"{PREFIX[1:]}/report/{{DAG_ID}}/{{RUN_ID}}/{{TASK_ID}}/",
            "destination": "task_instance",
            "url_route": "report",
        }
    ]
