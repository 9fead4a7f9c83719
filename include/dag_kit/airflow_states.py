"""What a task may ask Airflow about other DAGs: the states of their runs, and whether they are paused."""

from typing import Any


class AirflowStates:
    """Asks over the task's own channel, so without a login. It is an ``include.ledger.Airflow``."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        # By counting: to ask for the state of a run that is not there is an error, which the task process cannot tell from others.
        for state in ("running", "queued", "success", "failed"):
            if self._ti.get_dr_count(dag_id=dag_id, run_ids=[run_id], states=[state]):
                return state
        return None

    def is_paused(self, dag_id: str) -> bool:
        return bool(self._ti.get_dag(dag_id).is_paused)
