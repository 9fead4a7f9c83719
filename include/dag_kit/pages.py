"""Authentication and authorization for the plugins' pages, with any of Airflow's auth managers.

A plugin's app is accessible without a login unless it declares otherwise. Only the API server
imports this module, when a page is first requested.
"""

from collections.abc import Callable, Iterable
from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import bearer_scheme, get_user, requires_access_dag
from fastapi import Depends, HTTPException, Request

from include.projects import get_project, project_names
from include.projects.base import STAGES, Project
from include.stack.api import RunNotStartedError


async def logged_in(request: Request, bearer: Any = Depends(bearer_scheme)) -> Any:
    """Return the authenticated user, or raise 401. A FastAPI dependency.

    401 means that the token is missing, forged or expired, or that its account was deleted. Airflow
    itself answers 403 in the last two cases. A page must not report a missing permission to a user
    who has to log in again.
    """
    try:
        return await get_user(request, None, bearer)
    except HTTPException:
        raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"}) from None


def may_read(entity: DagAccessEntity | None = None) -> Callable[..., None]:
    """Return a dependency that raises 403 unless the user may read a DAG.

    The DAG is the path's ``dag_id``. If ``entity`` is given, the user must be allowed to read that
    entity of the DAG.
    """
    allowed = requires_access_dag("GET", entity)

    def reads(request: Request, user: Any = Depends(logged_in)) -> None:
        allowed(request, user)

    return reads


def may_start(request: Request, user: Any, dag_ids: Iterable[str]) -> bool:
    """Return whether the user may start runs of all these DAGs."""
    try:
        for dag_id in dag_ids:
            requires_access_dag("POST", DagAccessEntity.RUN, dag_id)(request, user)
    except HTTPException:
        return False
    return True


def project_of(dag_id: str) -> Project | None:
    """Return the project that a DAG belongs to, or None if it does not belong to a project."""
    name, _, stage = dag_id.partition("__")
    return get_project(name) if name in project_names() and stage in STAGES else None


def start_run(dag_id: str, conf: dict[str, str], run_id: str, *, by: str) -> str:
    """Start a run from within the API server and return its id.

    The API server does not know the user's password. If a run with this id exists already, its id
    is returned.

    Raises:
        RunNotStartedError: The DAG does not exist, or Airflow refuses.
    """
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import AirflowException, DagRunAlreadyExists
    from airflow.utils.types import DagRunTriggeredByType
    from sqlalchemy.exc import SQLAlchemyError

    try:
        trigger_dag(dag_id, triggered_by=DagRunTriggeredByType.UI, triggering_user_name=by, run_id=run_id, conf=conf)
    except DagRunAlreadyExists:
        pass
    except (AirflowException, SQLAlchemyError, ValueError) as error:
        raise RunNotStartedError(f"{dag_id}: {error}") from error
    return run_id
