"""Secrets that a task can read, with each executor of the profile compose.

See docs/runbooks/access.md, "What a task can read". A real task of a real Airflow collects all that
it can read: environments, command lines and open files of every process, files, its configuration,
and its own memory. The test searches this for each secret.
"""

import json
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from include.stack.api import AirflowApi
from include.stack.stores.databases import make_databases
from tests.cluster.namespace import until
from tests.integration.stack.compose_processes import chosen_secrets, processes

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.getuid() != 0, reason="PID namespaces need root"),
]

DAG = '''
"""Collects all that a task can read."""

from airflow.sdk import dag, task


@dag(dag_id="collect", schedule=None)
def collect():
    @task
    def everything():
        import os
        import re
        import subprocess
        import sys
        from pathlib import Path

        from airflow.sdk.configuration import conf

        out = Path(os.environ["COLLECTED"])

        def keep(name, content):
            with (out / name).open("ab") as file:
                file.write(content + b"\\n")

        def read(path, limit=2_000_000):
            try:
                with open(path, "rb") as file:
                    return file.read(limit)
            except OSError as error:
                return str(error).encode()

        keep("environ", repr(dict(os.environ)).encode())
        keep("child", subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True).stdout)
        for process in Path("/proc").glob("[0-9]*"):
            keep("processes", process.name.encode())
            keep("proc_environ", read(process / "environ"))
            keep("proc_cmdline", read(process / "cmdline"))
            for fd in (process / "fd").glob("*") if os.access(process / "fd", os.R_OK) else ():
                if os.path.isfile(fd):
                    keep("proc_fd", read(fd))
        for folder in (os.environ["AIRLOOP_HOME"], os.environ["AIRFLOW_HOME"], "/run/secrets"):
            for file in Path(folder).rglob("*"):
                if file.is_file():
                    keep("files", read(file))
        keep("conf", repr(conf.as_dict(display_sensitive=True)).encode())
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                first, last, rights, path = re.match(r"(\\w+)-(\\w+) (....) \\S+ \\S+ \\S+ *(.*)", line).groups()
                if rights.startswith("rw") and not path.startswith("/dev"):
                    try:
                        memory.seek(int(first, 16))
                        keep("memory", memory.read(int(last, 16) - int(first, 16)))
                    except OSError:
                        pass

    everything()


collect()
'''  # noqa: E501
# Out of reach of a task, with any executor.
ADMINS = ("AIRLOOP_AIRFLOW_ADMIN_PASSWORD", "AIRLOOP_MLFLOW_ADMIN_PASSWORD", "POSTGRES_PASSWORD", "S3_ROOT_SECRET")
AIRFLOWS = (
    "AIRLOOP_AIRFLOW_DATABASE_URL",
    "AIRLOOP_AIRFLOW_FERNET_KEY",
    "AIRLOOP_AIRFLOW_JWT_SECRET",
    "AIRLOOP_AIRFLOW_API_SECRET_KEY",
)
TASKS = ("AIRLOOP_LEDGER_URL", "AIRLOOP_MLFLOW_PASSWORD", "AIRLOOP_SERVING_API_KEY")


def collected(executor: str, folder: Path, settings, redis) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return what the task could read, by source, and the secrets."""
    make_databases(settings)
    secrets = chosen_secrets(settings, redis) | {"AIRFLOW_EXECUTOR": executor}
    out, dags = folder / "collected", folder / "dags"
    out.mkdir(), dags.mkdir()
    (dags / "collect.py").write_text(DAG)
    given = {"broker": f"127.0.0.1:{redis.port}", "COLLECTED": str(out), "AIRLOOP_DAGS_FOLDER": str(dags)}
    with processes(folder, secrets, given) as stack:
        stack.run("migrate", "include.cli", "migrate")
        for service in ("api-server", "dag-processor"):
            stack.start(service)
        stack.start("scheduler", contained=True)
        if executor == "CeleryExecutor":
            stack.start("worker", "celery-worker", contained=True)
        api = AirflowApi(f"http://127.0.0.1:{stack.port}", "admin", secrets["AIRLOOP_AIRFLOW_ADMIN_PASSWORD"])
        try:
            until(lambda: _answers(api), 180, "the API server")
            api.wait_for_dags(["collect"], timeout=180)
            assert api.wait("collect", api.trigger("collect"), timeout=240) == "success"
            if executor == "CeleryExecutor":
                well = stack.health("worker")
                assert well.returncode == 0 and "pong" in well.stdout, well.stdout + well.stderr
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"{error}\n{stack.logs()}") from error
    return {file.name: file.read_bytes() for file in out.iterdir()}, secrets


def _answers(api: AirflowApi) -> bool:
    import httpx

    try:
        return bool(api.health())
    except httpx.HTTPError:
        return False


def places(secrets: dict[str, str], name: str, contents: dict[str, bytes]) -> set[str]:
    """Return the sources that contain a secret or the password of its URL."""
    value = secrets[name]
    password = urlsplit(value).password if "://" in value else None
    forms = {form.encode() for form in (value, password, unquote(password or "")) if form}
    return {source for source, content in contents.items() if any(form in content for form in forms)}


def test_a_celery_worker_s_task_reads_no_secret_of_airflow(tmp_path, real_settings, redis_server):
    contents, secrets = collected("CeleryExecutor", tmp_path, real_settings, redis_server)
    assert len(contents["processes"].split()) < 40 and len(contents["memory"]) > 10_000_000, (
        "the worker was not contained, or nothing was collected"
    )
    assert {name: places(secrets, name, contents) for name in TASKS if not places(secrets, name, contents)} == {}, (
        "this way of looking finds nothing"
    )
    leaked = {name: where for name in (*AIRFLOWS, *ADMINS) if (where := places(secrets, name, contents))}
    assert leaked == {}


def test_with_local_executor_only_administrators_secrets_are_out_of_reach(tmp_path, real_settings, redis_server):
    """With LocalExecutor only the administrator's secrets are out of reach.

    The runbook says that LocalExecutor is not a boundary for Airflow's own secrets. It only keeps
    them out of the environment that a task inherits.
    """
    contents, secrets = collected("LocalExecutor", tmp_path, real_settings, redis_server)
    own = {source: contents[source] for source in ("environ", "child")}
    assert {name: where for name in AIRFLOWS if (where := places(secrets, name, own))} == {}
    assert {name: where for name in ADMINS if (where := places(secrets, name, contents))} == {}
    within_reach = {name for name in AIRFLOWS if places(secrets, name, contents)}
    assert within_reach == set(AIRFLOWS), json.dumps(sorted(within_reach))
