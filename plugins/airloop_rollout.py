"""The tab "Rollout" of a project's DAGs: what is deployed, for those who may read the DAG; rolling back, freezing and thawing, for those who may start
what that concerns. It is `airloop rollout|rollback|freeze|thaw` in the UI, by the same functions.

Every Airflow component loads plugins, so this module imports nothing but the plugin's base class: the app is built at its first request,
which only the API server gets.
"""

import asyncio
import logging
import os
from dataclasses import asdict
from functools import cache
from typing import Annotated, Literal

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)
PREFIX = "/airloop-rollout"  # not below that of the reports: whose mount is asked first is not said
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # No script at all; the forms go to this server alone, and no other site may lay the page under its own. The page keeps its origin: without it
    # the forms would come without the reader's login.
    "Content-Security-Policy": "sandbox allow-forms allow-same-origin; default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# What a person does here, and the stages of which he must be allowed to start runs: by a run he could do as much, or the thaw starts one for him (ADR 36).
STAGES_OF = {"roll_back": ("deploy",), "freeze": ("train", "deploy"), "thaw": ("train", "deploy")}
LONGEST_REASON = 500
TOKEN_AGE_S = 3600  # what was looked at longer ago is to be looked at again
AWAY = "The model registry (MLflow) does not answer. Serving goes on with what it has, and follows as soon as MLflow is back. The API server's log says more."
NOT_OURS = "This form was not filled in on the page as you see it here, or more than an hour ago. Nothing was done. Look again, and then do it again."


def _signer():
    from airflow.configuration import conf
    from itsdangerous import URLSafeTimedSerializer

    return URLSafeTimedSerializer(conf.get("api", "secret_key"), salt="airloop-rollout")


def make_token(user, project, seen) -> str:
    """Goes with each form of the page: whose it is, and what its reader has seen (include.rollout.by_hand.Seen), signed."""
    return _signer().dumps([str(user.get_id()), project.name, asdict(seen)])


def seen_by(request, token: str, user, project):
    """What the user had seen when he filled in the form; None: it is not a form that this page gave him.

    The login's cookie comes along from every page of the same site, other ports and subdomains too, so it alone proves nothing (ADR 36).
    """
    from itsdangerous import BadData

    from include.rollout.by_hand import Seen

    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return None
    try:
        whose, name, seen = _signer().loads(token, max_age=TOKEN_AGE_S)
        return Seen(**seen) if (whose, name) == (str(user.get_id()), project.name) else None
    except (BadData, TypeError, ValueError):  # the latter two: another version's
        return None


def do(act: str, project, *, user, reason: str, to: str | None, seen) -> list[tuple[str, str]]:
    """Do it; gives what came of it, as the page tells it. Raises as the functions behind it."""
    from include.dag_kit.pages import start_run
    from include.operations import freezing
    from include.printable import one_line
    from include.rollout.by_hand import roll_back, what_serving_serves
    from include.settings import get_settings

    by = f"{one_line(user.get_name())} in the UI"
    if act == "freeze":
        held, new = freezing.freeze(project.name, by=by, why=reason)
        return [(f"{held}." if new else f"It was frozen already, and that stays: {held}.", "yes" if new else "")]
    if act == "thaw":
        thawed = freezing.thaw(get_settings(), project.name, by=by, start=lambda *run: start_run(*run, by=user.get_name()))
        told = [(f"Thawed; it was so: {thawed.ended}." if thawed.ended else f"{project.name} was not frozen.", "yes")]
        told += [(f"Still: {one}.", "no") for one in thawed.still]
        told += [(f"Started: {dag_id}, {run_id}.", "") for dag_id, run_id in thawed.started]
        return [*told, (thawed.trouble, "no")] if thawed.trouble else told
    done = roll_back(project, to=to, reason=reason, by=by, seen=seen)
    taken = f"Version {done.taken_back.version} is taken back" if done.taken_back else "There was nothing to take back"
    now = f"champion is version {done.champion}" if done.champion else "there is no champion"
    told = [(f"{taken}; {now}.", "yes" if done.taken_back else ""), *((f"{note}.", "") for note in done.notes)]
    if done.champion is None:
        return told
    follows, said = what_serving_serves(project, done.champion)
    return [*told, (f"{said[0].upper()}{said[1:]}.", "yes" if follows else "no")]


@cache
def _app():
    for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}.items():
        os.environ.setdefault(name, value)  # a person waits; MLflow's client tries for minutes. Nothing else in the API server asks MLflow
    from fastapi import Depends, FastAPI, Form, Request
    from fastapi.responses import HTMLResponse
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from include.dag_kit.pages import logged_in, may_read, may_start, project_of
    from include.dag_kit.report_pages import with_headers
    from include.ledger import Busy, LedgerError
    from include.printable import one_line
    from include.registry.versions import AliasNotMoved
    from include.rollout.document import Overtaken
    from include.rollout.overview import overview, overview_page
    from include.training.page import page, paragraph

    # For every route that there is or will be. No openapi_url: so no pages of documentation.
    app = FastAPI(title="Airloop", openapi_url=None, dependencies=[Depends(logged_in), Depends(may_read())])

    def of_no_project(dag_id: str) -> HTMLResponse:
        text = f"{dag_id} is not a stage of a project of Airloop: nothing is deployed by it."
        return HTMLResponse(page("No rollouts here", paragraph(text)), status_code=404)

    def shown(request: Request, user, project, status: int = 200, told: list[tuple[str, str]] | None = None) -> HTMLResponse:
        told = told or []
        try:
            found = overview(project)
        except MlflowException as error:
            log.error("what is deployed of %s: %s", project.name, error)
            content = page(f"{project.name}: what is deployed", *(paragraph(text, kind) for text, kind in (*told, (AWAY, "no"))))
            return HTMLResponse(content, status_code=503)
        refusals = {}
        for act, stages in STAGES_OF.items():
            dag_ids = [f"{project.name}__{stage}" for stage in stages]
            if not may_start(request, user, dag_ids):
                refusals[act] = f"You may look. This takes an account that may start {' and '.join(dag_ids)}."
        content = overview_page(project, found, token=make_token(user, project, found.seen), refusals=refusals, told=told)
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
            return shown(request, user, project, 403, [(f"Nothing was done: your account may not start {' and '.join(dag_ids)}.", "no")])
        seen = seen_by(request, token, user, project)
        if seen is None:
            return shown(request, user, project, 403, [(NOT_OURS, "no")])
        reason = one_line(reason)
        if act != "thaw" and not 0 < len(reason) <= LONGEST_REASON:
            return shown(request, user, project, 422, [(f"Nothing was done: say why, in {LONGEST_REASON} letters at most.", "no")])
        log.info("%s of %s by %s: %s", act, project.name, one_line(user.get_name()), reason)
        try:
            told = do(act, project, user=user, reason=reason, to=to.strip() or None, seen=seen)
        except (Busy, Overtaken, ValueError) as error:
            return shown(request, user, project, 409, [(f"Not done: {error}.", "no")])
        except (AliasNotMoved, MlflowException, SQLAlchemyError, LedgerError) as error:
            log.error("%s of %s: %s", act, project.name, error)  # whom it names, and as whom, is for operators
            store = "The ledger" if isinstance(error, (SQLAlchemyError, LedgerError)) else "The model registry (MLflow)"
            return shown(request, user, project, 503, [(f"Not done to the end: {store} did not answer as it should. Do it again: it goes on.", "no")])
        return shown(request, user, project, 200, told)

    return with_headers(app, HEADERS)


async def _app_when_asked(scope, receive, send) -> None:
    app = await asyncio.to_thread(_app)  # the first time it imports for seconds
    await app(scope, receive, send)


class AirloopRollout(AirflowPlugin):
    name = "airloop_rollout"
    fastapi_apps = [{"app": _app_when_asked, "url_prefix": PREFIX, "name": "Airloop rollout"}]
    external_views = [
        # Relative, so that it holds below any base URL; Airflow shows it on every DAG, and those of no project say so.
        {"name": "Rollout", "href": f"{PREFIX[1:]}/{{DAG_ID}}/", "destination": "dag", "url_route": "rollout"}
    ]
