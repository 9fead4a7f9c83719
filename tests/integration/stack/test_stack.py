"""The real stack: up, status, a task, a saved DAG file, a killed scheduler, down.

The tests use one stack, in their order.
"""

import os
import signal
import stat
import time
from urllib.parse import quote

import psutil
import pytest

from include.stack import lifecycle
from include.stack.processes import MEMBER
from tests.waiting import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

DAG = '''
from airflow.sdk import dag, task

@dag(schedule=None, dag_id="{dag_id}", tags=["{tag}"], doc_md="test")
def probe():
    @task(pool="cpu", retries=1, retry_delay=1)
    def preloaded() -> list:
        import sys

        return sorted({{"feast", "mlflow", "evidently", "great_expectations"}} & sys.modules.keys())

    @task
    def linger(seconds: int) -> None:
        """With a child in a session of its own, as a training step might have."""
        import subprocess
        import sys

        subprocess.run([sys.executable, "-c", f"import time; time.sleep({{seconds}})"], start_new_session=True, check=True)

    preloaded()
    {more}

probe()
'''  # noqa: E501


def seconds_until(condition, timeout: float = 60.0) -> float:
    """Wait for the condition and return the duration."""
    began = time.monotonic()
    wait_for(condition, timeout, interval=0.2)
    return time.monotonic() - began


def task_ids(api, dag_id: str) -> set[str]:
    """Return the task ids of the current DAG version in Airflow."""
    return {task["task_id"] for task in api.call("GET", f"dags/{dag_id}/tasks")["tasks"]}


def lingers(api, run_id: str) -> bool:
    return {t["task_id"]: t["state"] for t in api.task_instances("probe", run_id)}.get("linger") == "running"


def statuses(settings) -> dict[str, lifecycle.ServiceStatus]:
    return {line.name: line for line in lifecycle.status(settings)}


def of_this_home(settings) -> list[str]:
    """Return every living process that names this stack's home in its command line or environment.

    They are found without the stack's own records.
    """
    descriptions = []
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline()) + process.environ().get(MEMBER, "")
            if str(settings.home) in text and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                descriptions.append(f"{process.pid} {text}")
        except psutil.Error:
            continue
    return descriptions


@pytest.fixture(scope="module")
def probe(stack_settings, api) -> None:
    """Return the DAG ``probe`` as Airflow has parsed it."""
    (stack_settings.dags_folder / "probe.py").write_text(DAG.format(dag_id="probe", tag="first", more=""))
    api.wait_for_dags(["probe"])


@pytest.fixture(scope="module")
def sessions(stack_settings, api):
    """Return the services' initial session ids."""
    return {line.pid for line in lifecycle.status(stack_settings)}


def test_everything_answers_and_status_says_so(api, airloop):
    result = airloop("status")
    assert result.returncode == 0
    assert result.stdout.count("answering") == 6
    assert set(api.health()) >= {"scheduler", "dag_processor", "triggerer"}


def test_a_stack_that_is_up_is_well(api, airloop):
    result = airloop("doctor")
    assert result.returncode == 0 and "All is well" in result.stdout, result.stdout + result.stderr


def test_a_second_up_changes_nothing(api, airloop, stack_settings, sessions):
    result = airloop("up")
    assert result.returncode == 0
    assert "all was up already" in result.stdout
    assert {line.pid for line in lifecycle.status(stack_settings)} == sessions


def test_secrets_and_logs_are_for_their_owner_only(api, stack_settings):
    for file in ("secrets.json", "simple_auth_manager_passwords.json.generated"):
        assert stat.S_IMODE((stack_settings.home / "airflow" / file).stat().st_mode) == 0o600
    assert stat.S_IMODE((stack_settings.home / "logs").stat().st_mode) == 0o700


def test_a_task_runs_in_the_pool_with_the_heavy_libraries_already_imported(api, probe):
    run_id = api.trigger("probe")
    assert api.wait("probe", run_id, timeout=60) == "success"
    xcom = api.call("GET", f"dags/probe/dagRuns/{quote(run_id)}/taskInstances/preloaded/xcomEntries/return_value")[
        "value"
    ]
    assert all(library in str(xcom) for library in ("evidently", "feast", "great_expectations", "mlflow")), xcom
    assert api.call("GET", "pools/cpu")["slots"] == 2


def test_a_saved_dag_file_is_seen_within_ten_seconds(api, stack_settings):
    began = time.monotonic()
    (stack_settings.dags_folder / "another.py").write_text(DAG.format(dag_id="another", tag="new", more=""))
    api.wait_for_dags(["another"], timeout=30)
    new = time.monotonic() - began

    (stack_settings.dags_folder / "another.py").write_text(DAG.format(dag_id="another", tag="edited", more="linger(0)"))
    edited = seconds_until(lambda: task_ids(api, "another") == {"preloaded", "linger"})
    print(f"a new DAG file was seen after {new:.1f} s, an edited one after {edited:.1f} s")
    assert new < 10
    assert edited < 12, "ten seconds; this save comes while the one before is being read, which is the worst case"


def test_after_kill_9_of_the_scheduler_status_fails_and_up_mends(api, airloop, stack_settings, sessions, probe):
    (stack_settings.dags_folder / "probe.py").write_text(
        DAG.format(dag_id="probe", tag="lingering", more="linger(300)")
    )
    seconds_until(lambda: "linger" in task_ids(api, "probe"))
    run_id = api.trigger("probe")
    seconds_until(lambda: lingers(api, run_id))
    time.sleep(2)  # until the task has its child
    os.kill(statuses(stack_settings)["scheduler"].pid, signal.SIGKILL)
    result = airloop("status")
    assert result.returncode == 1
    assert "died" in result.stdout

    result = airloop("up")
    assert result.returncode == 0, result.stdout
    now = statuses(stack_settings)
    assert now["scheduler"].pid not in sessions
    assert {line.pid for line in now.values()} - {now["scheduler"].pid} < sessions
    run_id = api.trigger("another")
    assert api.wait("another", run_id, timeout=90) == "success"


def test_down_leaves_nothing_even_after_a_kill_in_the_middle_of_a_task(api, airloop, stack_settings, sessions, probe):
    run_id = api.trigger("probe")
    # The earlier run's task may be tried again first, and there are only two slots.
    seconds_until(lambda: lingers(api, run_id), 120)
    time.sleep(2)
    os.kill(statuses(stack_settings)["scheduler"].pid, signal.SIGKILL)
    os.kill(statuses(stack_settings)["mlflow"].pid, signal.SIGKILL)
    everything = sessions | {line.pid for line in lifecycle.status(stack_settings) if line.pid}
    assert of_this_home(stack_settings), "the way this test looks for processes finds none even now"
    assert airloop("down").returncode == 0
    assert of_this_home(stack_settings) == []
    left = [p for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE and _session(p) in everything]
    assert left == []
    assert airloop("status").returncode == 1


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None
