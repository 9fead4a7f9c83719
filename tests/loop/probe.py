"""A DAG that prints all it knows, and a search for secrets in everything written afterwards."""

from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

from include.data import storage
from include.settings import Settings
from include.stack.api import AirflowApi
from tests.cluster.namespace import until
from tests.integration.s3.conftest import ACCESS_KEY, SECRET_KEY
from tests.loop.leaks import error_answers, nothing_leaked, secrets_of

PROBE = '''
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task

from include.dag_kit.defaults import default_args
from include.projects import get_project


@dag(dag_id="flights__probe", schedule=None, default_args=default_args(get_project("flights")) | {"retries": 0}, doc_md="test")
def probe():
    @task(trigger_rule="all_done")
    def tell() -> list:
        """What a careless task does: prints and logs all that it has."""
        import logging
        import os

        print("printed", dict(os.environ))
        for name, value in os.environ.items():
            logging.getLogger(__name__).warning("logged %s %s", name, value)
        return sorted(os.environ)

    @task
    def fail():
        """An error that tells what it was tried with, as some libraries' do."""
        import os

        from include.settings import get_settings, secret_fields

        has = {name: value.get_secret_value() for name in secret_fields() if (value := getattr(get_settings(), name))}
        raise ConnectionError(f"cannot log in with {has} and {dict(os.environ)}")

    @task
    def mapped(number: int) -> str:
        import os

        return os.environ.get("AWS_ACCESS_KEY_ID", "none")

    command = "echo {{ conn.probe.password }} {{ conn.probe.get_uri() }} $MLFLOW_TRACKING_PASSWORD"
    render = BashOperator(task_id="render", bash_command=command, do_xcom_push=False)  # what a task returns is kept as it is
    [fail(), render] >> tell()
    mapped.expand(number=[1, 2])


probe()
'''  # noqa: E501

# Password of a connection, as in a user's DAG.
PROBES = f"of-the-probe-{token_hex(16)}"


def assert_nothing_leaks(kind: str, settings: Settings, api: AirflowApi, s3) -> None:
    """Assert that no secret leaks after a task prints all it knows and error requests are sent.

    The search covers logs, rendered templates, XComs, DAG params, MLflow, serving's prediction log,
    the answers of all servers, and command lines.
    """
    run_id = api.trigger("flights__probe")
    assert api.wait("flights__probe", run_id, timeout=600) == "success"
    of_task = f"dags/flights__probe/dagRuns/{quote(run_id)}/taskInstances"
    variables = api.call("GET", f"{of_task}/tell/xcomEntries/return_value")["value"]
    secrets = secrets_of(settings, connection=PROBES)
    rendered = api.call("GET", f"{of_task}/render")["rendered_fields"]["bash_command"]
    assert rendered.startswith("echo ***"), rendered
    texts = error_answers(settings, api, "flights")
    if kind == "files":
        nothing_leaked(settings, secrets, [settings.home], texts)
        return
    handed = {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_ALLOW_HTTP",
        "AWS_CONDITIONAL_PUT",
        "MLFLOW_TRACKING_PASSWORD",
    }
    others = {
        f"AIRLOOP_{name}"
        for name in ("AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_FERNET_KEY", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_READER_PASSWORD")
    }
    # A task gets only the variables it needs.
    assert handed <= set(variables) and not others & set(variables)
    mapped = api.call("GET", f"{of_task}/mapped/xcomEntries/return_value", params={"map_index": 1})["value"]
    assert mapped == ACCESS_KEY

    everything, logs = [settings.home, s3.folder], s3.folder / storage.path(settings.remote_logs).path
    until(lambda: holding("printed", logs), 60, "the log of a task that has ended, which is uploaded after that")
    # The access key is not a secret, and is in the XCom above.
    assert holding(ACCESS_KEY, *everything), "this way of looking finds nothing"
    nothing_leaked(settings, secrets | {"of the store": SECRET_KEY}, everything, texts)


def holding(text: str, *folders: Path) -> list[str]:
    return [
        str(file)
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and text.encode() in file.read_bytes()
    ]
