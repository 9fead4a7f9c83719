"""A task has few retries after its own errors, and more while a store is unavailable.

The count starts again after the task was cleared.
"""

import json

import pyarrow
import pytest
from airflow.sdk import RetryAction

from include.dag_kit.compute import BackendUnavailableError, training_step
from include.dag_kit.retries import OUTAGES, PAUSES, RETRIES, BackendOutageRetryPolicy
from include.dag_kit.storage import ConnectionNotFoundError
from include.projects import UnknownProjectError, get_project
from include.rollout.served import NotServedError
from include.secrets_manager import SecretsManagerError

ALL = RETRIES + OUTAGES
OWN, AWAY = RuntimeError("CUDA error: unknown error"), ConnectionRefusedError("Connection refused")


def decide(error, try_number, max_tries=ALL, policy=None):
    return (policy or BackendOutageRetryPolicy()).evaluate(error, try_number, max_tries)


def test_an_error_of_its_own_has_its_retries_and_then_none():
    assert [decide(OWN, n).action for n in range(1, RETRIES + 2)] == [RetryAction.DEFAULT] * RETRIES + [
        RetryAction.FAIL
    ]


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("bad data"), False),
        (KeyError("no such column"), False),
        (TypeError("unsupported operand"), False),
        (ModuleNotFoundError("No module named 'returns'"), False),
        (ZeroDivisionError("division by zero"), False),
        (UnknownProjectError("no project 'x'"), False),
        (pyarrow.lib.ArrowInvalid("not a Parquet file"), False),
        (json.JSONDecodeError("Expecting value", "<html>", 0), True),  # for example, from a proxy
        (SecretsManagerError("AWS Secrets Manager cannot be asked for 'airloop'"), True),
        (
            ConnectionNotFoundError(
                "the Airflow connection 'store' cannot be read: AWS Secrets Manager cannot be asked"
            ),
            True,
        ),
        (chained(ValueError("cannot read the table"), AWAY), True),
        (FileNotFoundError("a mount that is not there yet"), True),
        (MemoryError(), True),
        (NotServedError("serving still serves version 1"), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_that_must_come_again_is_not_waited_for(error, again):
    assert (decide(error, 1).action != RetryAction.FAIL) is again
    step = training_step(get_project("flights"), "fit", arguments={})
    assert (step.retry_policy.evaluate(error, 1, step.retries).action != RetryAction.FAIL) is again


def test_a_store_that_is_away_is_waited_for_longer_and_longer():
    decisions = [decide(AWAY, n) for n in range(1, ALL + 1)]
    assert {d.action for d in decisions} == {RetryAction.RETRY}
    seconds = [d.retry_delay.total_seconds() for d in decisions]
    assert seconds == sorted(seconds) and sum(seconds) >= 240 and seconds[0] == PAUSES[0]
    assert "ConnectionRefusedError" in decisions[0].reason


def test_tries_before_a_clear_do_not_count():
    assert decide(OWN, ALL + 1, max_tries=2 * ALL).action == RetryAction.DEFAULT
    assert decide(OWN, ALL + RETRIES + 1, max_tries=2 * ALL).action == RetryAction.FAIL


def test_a_training_step_counts_its_own_tries_by_itself():
    step = training_step(get_project("flights"), "fit", arguments={})
    assert step.retry_policy.evaluate(OWN, step.retries, step.retries).action == RetryAction.DEFAULT
    assert (
        step.retry_policy.evaluate(BackendUnavailableError("fit had no answer of a store"), 1, step.retries).action
        == RetryAction.RETRY
    )


@pytest.mark.parametrize(
    "error, error_type", [(BackendUnavailableError("away"), BackendUnavailableError), (OWN, RuntimeError)]
)
def test_a_step_that_had_no_answer_of_a_store_is_never_given_up_for_that(error, error_type):
    from include.dag_kit.compute import TrainingStep

    assert type(TrainingStep._failure(error, tries=RETRIES)) is error_type
    assert type(TrainingStep._failure(BackendUnavailableError("away"), tries=99)) is BackendUnavailableError
