"""Query Airflow from a task about other DAGs: run states, and whether a DAG is paused."""

from typing import Any


class AirflowStates:
    """Query Airflow over the task's own channel, which works without a login.

    Implements ``include.ledger.Airflow``.
    """

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        # Count runs by state. A request for the state of a missing run raises an error that the
        # task process cannot distinguish from other errors.
        for state in ("running", "queued", "success", "failed"):
            if self._ti.get_dr_count(dag_id=dag_id, run_ids=[run_id], states=[state]):
                return state
        return None

    def is_paused(self, dag_id: str) -> bool:
        return bool(self._ti.get_dag(dag_id).is_paused)
