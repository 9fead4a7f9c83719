"""What the plugins' pages have in common: who asks, and what Airflow's auth manager, whichever it is, lets him do.

Apps of plugins are open to the world unless they say otherwise. Imported by the API server alone, at a page's first request.
"""

from collections.abc import Callable, Iterable

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import bearer_scheme, get_user, requires_access_dag
from fastapi import Depends, HTTPException, Request

from include.projects import get_project, project_names
from include.projects.base import STAGES, Project
from include.stack.api import NotStarted


async def logged_in(request: Request, bearer=Depends(bearer_scheme)):
    """A dependency that gives the user, or answers 401: nobody's token, one that is forged, has run out, or is of an account that is no more.

    Airflow's own answers 403 to the last two; a page must not look as if its reader lacked a permission when he has to log in again.
    """
    try:
        return await get_user(request, None, bearer)
    except HTTPException:
        raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"}) from None


def may_read(entity: DagAccessEntity | None = None) -> Callable[..., None]:
    """A dependency that answers 403 unless the user may see the DAG of the path's ``dag_id``, or what ``entity`` names of it."""
    allowed = requires_access_dag("GET", entity)

    def reads(request: Request, user=Depends(logged_in)) -> None:
        allowed(request, user)

    return reads


def may_start(request: Request, user, dag_ids: Iterable[str]) -> bool:
    """Whether the user may start runs of all these DAGs."""
    try:
        for dag_id in dag_ids:
            requires_access_dag("POST", DagAccessEntity.RUN, dag_id)(request, user)
    except HTTPException:
        return False
    return True


def project_of(dag_id: str) -> Project | None:
    """Whose DAG it is; None: no project's."""
    name, _, stage = dag_id.partition("__")
    return get_project(name) if name in project_names() and stage in STAGES else None


def start_run(dag_id: str, conf: dict[str, str], run_id: str, *, by: str) -> str:
    """Start a run from within the API server, which knows nobody's password; gives its id. One that is there already is as good.

    Raises:
        NotStarted: there is no such DAG, or Airflow refuses.
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
        raise NotStarted(f"{dag_id}: {error}") from error
    return run_id
