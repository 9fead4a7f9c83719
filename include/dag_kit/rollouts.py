"""How a rollout's ends look in Airflow: each goes on record, then skips or fails the task."""

from contextlib import contextmanager
from typing import Any

from include.projects.base import Project


@contextmanager
def ends_on_record(project: Project, chosen: dict[str, Any], *, cutoff: str, dag_run: str):
    """Around a task's work on the rollout of a chosen version.

    * nothing to do any more (superseded): the task is skipped,
    * the project is frozen: it is skipped, and says by whom and why,
    * this run, or a person, has put the version back: the task fails if that is not on record yet (this run was killed just then), else it is skipped,
    * the version was taken out after a look at its answers, a bad model, or an alias that somebody moved meanwhile: it fails, and a retry would not help,
    * serving does not serve it: it fails without a retry, so that the old one comes back now,
    * anything else (the registry is away) is tried again.
    """
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

    from include import ledger
    from include.rollout import promotion, records, served
    from include.rollout.document import TakenBack
    from include.rollout.steps import Breached

    def record(state: str, error: Exception) -> str:
        records.record_end(project, chosen, state, str(error), cutoff=cutoff, dag_run=dag_run)
        return str(error)

    try:
        yield
    except ledger.Frozen as error:
        raise AirflowSkipException(record("frozen", error)) from error
    except TakenBack as error:
        if records.on_record(project, chosen, dag_run):
            raise AirflowSkipException(str(error)) from error
        raise AirflowFailException(record("rolled_back", error)) from error
    except Breached as error:
        raise AirflowFailException(record("rolled_back", error)) from error
    except promotion.Superseded as error:
        raise AirflowSkipException(record("superseded", error)) from error
    except promotion.Overtaken as error:
        raise AirflowFailException(record("overtaken", error)) from error
    except promotion.BadModel as error:
        raise AirflowFailException(record("refused", error)) from error
    except served.NotServed as error:
        raise AirflowFailException(str(error)) from error
