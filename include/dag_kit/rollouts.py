"""Translate the ends of a rollout into task states. Each end is recorded.

The task is then skipped or fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from include.projects.base import Project


@contextmanager
def record_rollout_outcome(project: Project, chosen: dict[str, Any], *, cutoff: str, dag_run: str) -> Iterator[None]:
    """Record the end of a rollout and set the task's state. A context manager around its work.

    * The version is superseded: the task is skipped.
    * The project is frozen: the task is skipped. The message says who froze it and why.
    * This run or a person has rolled the version back: the task fails if that is not recorded yet
      (this run was killed just then). Otherwise it is skipped.
    * The version was removed after a look, the model is bad, or the alias was moved by another user
      in the meantime: the task fails, and a retry would not help.
    * Serving does not serve the version: the task fails without a retry, so that the old version is
      restored now.
    * Any other error (e.g. the registry is unavailable) is retried.
    """
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

    from include import ledger
    from include.rollout import promotion, records, served
    from include.rollout.document import OvertakenError, SupersededError, TakenBackError
    from include.rollout.steps import RuleBreachedError

    def record(state: str, error: Exception) -> str:
        records.record_end(project, chosen, state, str(error), cutoff=cutoff, dag_run=dag_run)
        return str(error)

    try:
        yield
    except ledger.FrozenError as error:
        raise AirflowSkipException(record("frozen", error)) from error
    except TakenBackError as error:
        if records.on_record(project, chosen, dag_run):
            raise AirflowSkipException(str(error)) from error
        raise AirflowFailException(record("rolled_back", error)) from error
    except RuleBreachedError as error:
        raise AirflowFailException(record("rolled_back", error)) from error
    except SupersededError as error:
        raise AirflowSkipException(record("superseded", error)) from error
    except OvertakenError as error:
        raise AirflowFailException(record("overtaken", error)) from error
    except promotion.UnfitModelError as error:
        raise AirflowFailException(record("refused", error)) from error
    except served.NotServedError as error:
        raise AirflowFailException(str(error)) from error
