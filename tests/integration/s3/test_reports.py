"""The Report tab on S3: the plugin reads only reports, through the Airflow connection.

It returns the same as on files.
"""

import json
import os
import runpy
from urllib.parse import quote

import pytest

from include.data import layout, storage
from include.projects import get_project
from include.settings import REPOSITORY
from tests.integration.s3.conftest import SECRET_KEY, forget

RUN = "manual__2013-02-01T00:00:00+00:00"
DAG = "flights__monitor"
PLUGIN = REPOSITORY / "plugins" / "airloop_reports.py"


@pytest.fixture
def plugin(airflow_home, s3_store, monkeypatch):
    """Load the plugin in a process that has only the connection's credentials."""
    folder = layout.report(get_project("flights"), DAG, RUN, "detect")
    storage.write(folder / "index.html", "<script src='static/plot.js'></script>a report")
    storage.write(folder / "static" / "plot.js", "draw()")
    storage.write(folder.parent / "secret.txt", "another task's")
    extra = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}
    connection = {
        "conn_type": "aws",
        "login": os.environ["AWS_ACCESS_KEY_ID"],
        "password": os.environ["AWS_SECRET_ACCESS_KEY"],
        "extra": extra,
    }
    monkeypatch.setenv("AIRFLOW_CONN_OUR_STORE", json.dumps(connection))
    monkeypatch.setenv("AIRLOOP_STORAGE_CONNECTION", "our_store")
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3_"))]:
        monkeypatch.delenv(name)
    forget()
    return runpy.run_path(str(PLUGIN))


@pytest.mark.parametrize(
    "path, media_type", [("", "text/html"), ("index.html", "text/html"), ("static/plot.js", "text/javascript")]
)
def test_files_of_the_report_are_given_with_their_type(plugin, path, media_type):
    assert plugin["read_report"](DAG, RUN, "detect", path)[1] == media_type


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "static/../../secret.txt",
        "/etc/passwd",
        "..\\secret.txt",
        "static",
        "static/",
        "no.html",
        "\0",
        "static//plot.js",
    ],
)
def test_nothing_else_is(plugin, path):
    assert plugin["read_report"](DAG, RUN, "detect", path) is None


def test_who_may_not_read_the_dag_may_not_read_its_reports_and_a_store_that_is_away_is_told_to_operators_only(
    plugin, monkeypatch, caplog
):
    from airflow.api_fastapi.core_api import security
    from fastapi.testclient import TestClient

    class OneDagOnly:
        async def get_user_from_token(self, token):
            return "somebody"

        def is_authorized_dag(self, *, details, **_):
            return details.id == DAG

    monkeypatch.setattr(security, "get_auth_manager", OneDagOnly)
    monkeypatch.setattr(security.DagModel, "get_team_name", lambda dag_id: None)
    client = TestClient(plugin["_app"](), headers={"Authorization": "Bearer x"})
    assert "a report" in client.get(f"/report/{DAG}/{quote(RUN)}/detect/").text
    assert client.get(f"/report/{DAG}_other/{quote(RUN)}/detect/").status_code == 403

    connection = json.loads(os.environ["AIRFLOW_CONN_OUR_STORE"])
    monkeypatch.setenv(
        "AIRFLOW_CONN_OUR_STORE", json.dumps(connection | {"extra": {"endpoint_url": "http://127.0.0.1:9"}})
    )
    away = client.get(f"/report/{DAG}/{quote(RUN)}/detect/")
    assert away.status_code == 503 and "cannot be read" in away.text and "127.0.0.1" not in away.text
    assert "http://127.0.0.1:9" in caplog.text and "does not answer" in caplog.text
    assert SECRET_KEY not in caplog.text + away.text
