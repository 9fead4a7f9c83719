"""Kill servers and Airflow's components during a loop, while an application queries serving."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import psutil

from include.settings import REPOSITORY, Settings
from include.stack.api import AirflowApi
from include.stack.processes import ProcessBook
from tests.loop.harness import FLIGHTS, airloop

# Which process is killed, and which task runs at that moment. The first five happen before there is
# a champion, the others while one is served.
KILLS = (
    ("s3", ("ingest ",)),
    ("redis", ("build_features validate", "build_features publish", "build_features materialize")),
    ("triggerer", ("build_features ", "train ")),
    ("postgres", ("train fit",)),
    ("mlflow", ("train evaluate", "train apply_gate", "train choose_refit", "train refit", "train register")),
    ("mlflow", ("score ", "monitor ")),
    ("scheduler", ("score ", "monitor ")),
    ("postgres", ("score ", "monitor ")),
)
AWAY_S = 8
EVERYTHING_GIVEN = dict.fromkeys(FLIGHTS.inputs.numeric, 1.0) | {"origin": "EWR", "carrier": "UA"}


@contextmanager
def kills(settings: Settings, servers: dict) -> Iterator[None]:
    """Kill each process of ``KILLS`` with SIGKILL during its task, and restart it after a pause.

    It is restarted as an operator would do it. From the first champion on, an application
    continuously queries serving. Every query must be answered, whichever process is down.
    """
    killed, not_answered, over = [], [], threading.Event()
    answered: list[str] = []
    api = AirflowApi.from_settings(settings)

    def kill_in_turn() -> None:
        for who, moments in KILLS:
            while not over.wait(0.2) and not works_at(api, moments):
                start_what_died(settings)
            if over.is_set():
                return
            print(f"kill -9 {who}", flush=True)
            if who in servers:
                servers[who].kill()
            else:
                kill_whole(settings, who)
            time.sleep(AWAY_S)
            if who in servers:
                servers[who].start()
            start_what_died(settings)
            killed.append(who)
            print(f"{who} is back", flush=True)
        while not over.wait(2):
            start_what_died(settings)

    def ask_serving() -> None:
        key = {"X-API-Key": settings.serving_api_key.get_secret_value()} if settings.serving_api_key else {}
        with httpx.Client(base_url=settings.serving_url, headers=key, timeout=60, trust_env=False) as client:
            while not over.wait(0.5):
                state = client.get(f"/models/{FLIGHTS.name}")
                if not answered and not (state.is_success and state.json()["version"]):
                    continue  # no champion yet
                answer = client.post(f"/models/{FLIGHTS.name}/predict", json={"instances": [EVERYTHING_GIVEN]})
                (not_answered if answer.is_error else answered).append(answer.text)

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(kill_in_turn), pool.submit(ask_serving)]
        try:
            yield
        finally:
            over.set()
            for done in watching:
                done.result(1200)
    assert killed == [who for who, _ in KILLS]
    assert len(answered) > 20 and not_answered == []


def works_at(api: AirflowApi, moments: tuple[str, ...]) -> bool:
    """Return whether a running task's DAG stage and id start with one of these prefixes."""
    try:
        running = api.call("GET", "dags/~/dagRuns/~/taskInstances", params={"state": "running", "limit": 50})[
            "task_instances"
        ]
    except httpx.HTTPError:
        return False
    return any(f"{one['dag_id'].partition('__')[2]} {one['task_id']}".startswith(moments) for one in running)


def start_what_died(settings: Settings) -> None:
    """Restart exited processes, as a container's restart policy does.

    Airflow's components exit if their database is unavailable for long.
    """
    deadline = time.monotonic() + 600
    while any(record.process() is None for record in ProcessBook(settings.home, REPOSITORY).records().values()):
        up = airloop("up")
        assert time.monotonic() < deadline, up.stdout + up.stderr


def kill_whole(settings: Settings, service: str) -> None:
    """Kill the service's process and all of its descendants."""
    process = ProcessBook(settings.home, REPOSITORY).records()[service].process()
    assert process
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
