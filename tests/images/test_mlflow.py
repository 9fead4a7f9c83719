"""The MLflow image starts its server with users, read-only and as nobody.

It does not contain Airflow.
"""

from secrets import token_urlsafe

import httpx
import pytest

from tests.images.engine import HARDENED
from tests.images.test_training import ABSENT, WRITES
from tests.ports import free_port
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(3600), pytest.mark.stack, pytest.mark.images]


def test_nobody_runs_it_and_it_has_no_airflow(engine, mlflow_image, size):
    inside = ("--entrypoint", "python")
    assert engine.run(mlflow_image, "-c", WRITES, options=inside).stdout.split() == ["10001", "10001", "/app"]
    engine.run(
        mlflow_image,
        "-c",
        ABSENT % (["airflow", "torch", "feast", "evidently", "serving", "include.projects", "pytest"],),
        options=inside,
    )
    red = engine.run(mlflow_image, "-c", ABSENT % (["mlflow"],), options=inside, check=False)
    assert red.returncode == 1 and "there is ['mlflow']" in red.stdout
    size(mlflow_image, 1200)


def test_it_asks_everybody_who_he_is(engine, mlflow_image):
    port = free_port()
    secrets = {
        f"MLFLOW_{name}": token_urlsafe(20)
        for name in ("PASSWORD", "READER_PASSWORD", "ADMIN_PASSWORD", "FLASK_SECRET_KEY")
    }
    settings = {"HOST": "127.0.0.1", "MLFLOW_PORT": port, "MLFLOW_USERNAME": "airloop", **secrets}
    given = [option for key, value in settings.items() for option in ("--env", f"AIRLOOP_{key}={value}")]
    container = engine.start("run", "--rm", "--name", f"mlflow-{port}", *HARDENED, *given, mlflow_image)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as server:
            wait_for(lambda: well(server), 300, lambda: container.poll())
            ask = {"url": "/api/2.0/mlflow/experiments/search", "json": {"max_results": 1}}
            assert server.post(**ask).status_code == 401
            assert server.post(**ask, auth=("airloop", secrets["MLFLOW_PASSWORD"])).status_code == 200
    finally:
        engine("stop", "--time", "10", f"mlflow-{port}", check=False)
        output = container.communicate(timeout=60)[0]
        print(output)
    assert not any(secret in output for secret in secrets.values())


def well(server: httpx.Client) -> bool:
    try:
        return server.get("/health").is_success
    except httpx.HTTPError:
        return False
