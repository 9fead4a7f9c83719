"""Add the tab "Rollout" to a project's DAGs.

The tab shows the deployment to users who may read the DAG. Users who may start the affected DAGs
can also roll back, freeze and thaw. The tab calls the same functions as the commands
`airloop rollout|rollback|freeze|thaw`.

Every Airflow component loads plugins, so this module imports only the plugin's base class. The app
is built at its first request, which only the API server receives.
"""

import asyncio
import logging
import os
from dataclasses import asdict
from functools import cache
from typing import Annotated, Literal

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)
# The prefix is not below the prefix of the reports, because the order of mounts is not documented.
PREFIX = "/airloop-rollout"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # The page runs no script, its forms go only to this server, and no other site may frame it.
    # It keeps its origin. Otherwise the browser would send the forms without the login cookie.
    "Content-Security-Policy": (
        "sandbox allow-forms allow-same-origin; default-src 'none'; style-src 'unsafe-inline'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# For each action, the stages whose runs the user must be allowed to start. Such a run has the same
# effect as the action, or the thaw starts it on behalf of the user (ADR 36).
STAGES_OF = {"roll_back": ("deploy",), "freeze": ("train", "deploy"), "thaw": ("train", "deploy")}
LONGEST_REASON = 500
# A form that is older than this is refused, and the user must reload the page.
TOKEN_AGE_S = 3600
AWAY = (
    "The model registry (MLflow) does not answer. Serving goes on with what it has, and follows as soon as MLflow is"
    " back. The API server's log says more."
)
NOT_OURS = (
    "This form was not filled in on the page as you see it here, or more than an hour ago. Nothing was done. Look"
    " again, and then do it again."
)


def _signer():
    from airflow.configuration import conf
    from itsdangerous import URLSafeTimedSerializer

    return URLSafeTimedSerializer(conf.get("api", "secret_key"), salt="airloop-rollout")


def make_token(user, project, seen) -> str:
    """Return the signed token of the page's forms.

    It contains the user, the project and the state that the page shows
    (include.rollout.manual_rollback.DeploymentSnapshot).
    """
    return _signer().dumps([str(user.get_id()), project.name, asdict(seen)])


def seen_by(request, token: str, user, project):
    """Return the state that the user saw when they submitted the form.

    Return None if this page did not create the form for this user. The browser sends the login
    cookie from every page of the same site, including other ports and subdomains. So the cookie
    alone does not prove that the form comes from this page (ADR 36).
    """
    from itsdangerous import BadData

    from include.rollout.manual_rollback import DeploymentSnapshot

    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return None
    try:
        whose, name, seen = _signer().loads(token, max_age=TOKEN_AGE_S)
        return DeploymentSnapshot(**seen) if (whose, name) == (str(user.get_id()), project.name) else None
    # A token that another version of Airloop made raises TypeError or ValueError.
    except (BadData, TypeError, ValueError):
        return None


def do(act: str, project, *, user, reason: str, to: str | None, seen) -> list[tuple[str, str]]:
    """Perform the action and return its outcome as (text, kind) paragraphs of the page.

    Raises the errors of the functions that it calls.
    """
    from include.dag_kit.pages import start_run
    from include.operations import freezing
    from include.printable import one_line
    from include.rollout.manual_rollback import roll_back, wait_for_served_version
    from include.settings import get_settings

    by = f"{one_line(user.get_name())} in the UI"
    if act == "freeze":
        held, new = freezing.freeze(project.name, by=by, why=reason)
        return [(f"{held}." if new else f"It was frozen already, and that stays: {held}.", "yes" if new else "")]
    if act == "thaw":
        thawed = freezing.thaw(
            get_settings(), project.name, by=by, start=lambda *run: start_run(*run, by=user.get_name())
        )
        messages = [
            (f"Thawed; it was so: {thawed.ended}." if thawed.ended else f"{project.name} was not frozen.", "yes")
        ]
        messages += [(f"Still: {one}.", "no") for one in thawed.still]
        messages += [(f"Started: {dag_id}, {run_id}.", "") for dag_id, run_id in thawed.started]
        return [*messages, (thawed.trouble, "no")] if thawed.trouble else messages
    done = roll_back(project, to=to, reason=reason, by=by, seen=seen)
    taken = f"Version {done.taken_back.version} is taken back" if done.taken_back else "There was nothing to take back"
    now = f"champion is version {done.champion}" if done.champion else "there is no champion"
    messages = [(f"{taken}; {now}.", "yes" if done.taken_back else ""), *((f"{note}.", "") for note in done.notes)]
    if done.champion is None:
        return messages
    follows, message = wait_for_served_version(project, done.champion)
    return [*messages, (f"{message[0].upper()}{message[1:]}.", "yes" if follows else "no")]


def _done(act: str, project, *, user, reason: str, to: str | None, seen) -> tuple[int, list[tuple[str, str]]]:
    """Perform the action. Return the status of the answer and the paragraphs of the page."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from include.ledger import LedgerError, LockTimeoutError
    from include.registry.versions import AliasNotMovedError
    from include.rollout.document import OvertakenError

    try:
        return 200, do(act, project, user=user, reason=reason, to=to, seen=seen)
    except (LockTimeoutError, OvertakenError, ValueError) as error:
        return 409, [(f"Not done: {error}.", "no")]
    except (AliasNotMovedError, MlflowException, SQLAlchemyError, LedgerError) as error:
        # The error can name hosts and users, so it appears only in the log for operators.
        log.error("%s of %s: %s", act, project.name, error)
        store = "The ledger" if isinstance(error, (SQLAlchemyError, LedgerError)) else "The model registry (MLflow)"
        text = f"Not done to the end: {store} did not answer as it should. Do it again: it goes on."
        return 503, [(text, "no")]


def _refusals(request, user, project) -> dict[str, str]:
    """Return the actions that the user may not perform, with the reason that the page shows."""
    from include.dag_kit.pages import may_start

    refusals = {}
    for act, stages in STAGES_OF.items():
        dag_ids = [f"{project.name}__{stage}" for stage in stages]
        if not may_start(request, user, dag_ids):
            refusals[act] = f"You may look. This takes an account that may start {' and '.join(dag_ids)}."
    return refusals


@cache
def _app():
    for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}.items():
        # By default MLflow's client retries for minutes, which is too long for a user who waits.
        # No other code in the API server calls MLflow.
        os.environ.setdefault(name, value)
    from fastapi import Depends, FastAPI, Form, Request
    from fastapi.responses import HTMLResponse
    from mlflow.exceptions import MlflowException

    from include.dag_kit.pages import logged_in, may_read, may_start, project_of
    from include.dag_kit.report_pages import with_headers
    from include.printable import one_line
    from include.reporting.page import page, paragraph
    from include.rollout.overview import overview, overview_page

    # The dependencies protect every route, also future ones. Without `openapi_url` FastAPI serves
    # no documentation pages.
    app = FastAPI(title="Airloop", openapi_url=None, dependencies=[Depends(logged_in), Depends(may_read())])

    def of_no_project(dag_id: str) -> HTMLResponse:
        text = f"{dag_id} is not a stage of a project of Airloop: nothing is deployed by it."
        return HTMLResponse(page("No rollouts here", paragraph(text)), status_code=404)

    def shown(
        request: Request, user, project, status: int = 200, messages: list[tuple[str, str]] | None = None
    ) -> HTMLResponse:
        messages = messages or []
        try:
            state = overview(project)
        except MlflowException as error:
            log.error("what is deployed of %s: %s", project.name, error)
            content = page(
                f"{project.name}: what is deployed",
                *(paragraph(text, kind) for text, kind in (*messages, (AWAY, "no"))),
            )
            return HTMLResponse(content, status_code=503)
        refusals = _refusals(request, user, project)
        content = overview_page(
            project, state, token=make_token(user, project, state.seen), refusals=refusals, messages=messages
        )
        return HTMLResponse(content, status_code=status)

    @app.get("/{dag_id}/")
    def look(request: Request, dag_id: str, user=Depends(logged_in)) -> HTMLResponse:
        project = project_of(dag_id)
        return of_no_project(dag_id) if project is None else shown(request, user, project)

    @app.post("/{dag_id}/{act}")
    def change(
        request: Request, dag_id: str, act: Literal["roll_back", "freeze", "thaw"], user=Depends(logged_in),
        token: Annotated[str, Form()] = "", reason: Annotated[str, Form()] = "", to: Annotated[str, Form()] = "",
    ) -> HTMLResponse:  # fmt: skip
        project = project_of(dag_id)
        if project is None:
            return of_no_project(dag_id)
        dag_ids = [f"{project.name}__{stage}" for stage in STAGES_OF[act]]
        if not may_start(request, user, dag_ids):
            return shown(
                request,
                user,
                project,
                403,
                [(f"Nothing was done: your account may not start {' and '.join(dag_ids)}.", "no")],
            )
        seen = seen_by(request, token, user, project)
        if seen is None:
            return shown(request, user, project, 403, [(NOT_OURS, "no")])
        reason = one_line(reason)
        if act != "thaw" and not 0 < len(reason) <= LONGEST_REASON:
            return shown(
                request,
                user,
                project,
                422,
                [(f"Nothing was done: state the reason, in {LONGEST_REASON} letters at most.", "no")],
            )
        log.info("%s of %s by %s: %s", act, project.name, one_line(user.get_name()), reason)
        status, messages = _done(act, project, user=user, reason=reason, to=to.strip() or None, seen=seen)
        return shown(request, user, project, status, messages)

    return with_headers(app, HEADERS)


async def _app_when_asked(scope, receive, send) -> None:
    # The first call imports for several seconds.
    app = await asyncio.to_thread(_app)
    await app(scope, receive, send)


class AirloopRollout(AirflowPlugin):
    name = "airloop_rollout"
    fastapi_apps = [{"app": _app_when_asked, "url_prefix": PREFIX, "name": "Airloop rollout"}]
    external_views = [
        # The link is relative, so that it works below any base URL. Airflow shows the tab on every
        # DAG. For a DAG that does not belong to a project, the page says so.
        {"name": "Rollout", "href": f"{PREFIX[1:]}/{{DAG_ID}}/", "destination": "dag", "url_route": "rollout"}
    ]
