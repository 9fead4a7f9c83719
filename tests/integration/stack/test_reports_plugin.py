"""The Report tab serves only the report's own files, and only to users who may read the DAG."""

import runpy
from urllib.parse import quote

import httpx
import pytest

from include.data import layout
from include.projects import get_project, project_names
from include.settings import REPOSITORY, get_settings

RUN = "manual__2013-02-01T00:00:00+00:00"
PLUGIN = REPOSITORY / "plugins" / "airloop_reports.py"


def write_report(dag_id: str) -> None:
    folder = layout.report(get_project(dag_id.partition("__")[0]), dag_id, RUN, "detect")
    (folder / "static").mkdir(parents=True)
    (folder / "index.html").write_text("<script src='static/plot.js'></script>a report")
    (folder / "static" / "plot.js").write_text("draw()")
    (folder.parent / "secret.txt").write_text("another run's")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")


@pytest.fixture
def of_settings(monkeypatch):
    """Make this process use the given settings."""

    def use(settings):
        for name, value in settings.environment().items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()

    yield use
    get_settings.cache_clear()


class TestFiles:
    """Files that ``read_report`` returns and refuses."""

    @pytest.fixture(autouse=True)
    def report(self, of_settings, tmp_path):
        of_settings(get_settings().model_copy(update={"home": tmp_path, "data_root": None}))
        self.dag_id = f"{project_names()[0]}__monitor"
        write_report(self.dag_id)
        self.read = runpy.run_path(str(PLUGIN))["read_report"]

    @pytest.mark.parametrize(
        "path, media_type", [("", "text/html"), ("index.html", "text/html"), ("static/plot.js", "text/javascript")]
    )
    def test_files_of_the_report_are_given_with_their_type(self, path, media_type):
        assert self.read(self.dag_id, RUN, "detect", path)[1] == media_type

    @pytest.mark.parametrize(
        "path",
        [
            "../secret.txt",
            "static/../../secret.txt",
            "/etc/passwd",
            "link.txt",
            "..\\secret.txt",
            "static",
            "no.html",
            "\0",
            "static//plot.js",
        ],
    )
    def test_nothing_else_is(self, path):
        assert self.read(self.dag_id, RUN, "detect", path) is None

    @pytest.mark.parametrize(
        "names",
        [
            ("{project}__other", "..", "{dag}", f"{RUN}/detect/index.html"),
            ("{dag}", RUN, "..", f"{RUN}/detect/index.html"),
            ("{dag}", f"{RUN}/detect/..", "detect", "index.html"),
            ("nobody__monitor", RUN, "detect", "index.html"),
        ],
        ids=[
            "another DAG's report through the run id",
            "through the task id",
            "a run id with a path",
            "no such project",
        ],
    )
    def test_names_cannot_leave_the_folder_either(self, names):
        """Names cannot leave the folder: the reader was authorized for this DAG id."""
        project = self.dag_id.partition("__")[0]
        assert self.read(*(name.format(dag=self.dag_id, project=project) for name in names)) is None


def test_who_may_not_read_the_dag_may_not_read_its_reports(monkeypatch, of_settings, tmp_path):
    """A user who may not read the DAG may not read its reports.

    The auth manager lets its user read the DAGs of one project only, because all roles of
    SimpleAuthManager may read everything.
    """
    from airflow.api_fastapi.core_api import security
    from fastapi.testclient import TestClient

    allowed = f"{project_names()[0]}__monitor"

    class OneDagOnly:
        async def get_user_from_token(self, token):
            return "somebody"

        def is_authorized_dag(self, *, details, **_):
            return details.id == allowed

    of_settings(get_settings().model_copy(update={"home": tmp_path, "data_root": None}))
    write_report(allowed)
    monkeypatch.setattr(security, "get_auth_manager", OneDagOnly)
    monkeypatch.setattr(security.DagModel, "get_team_name", lambda dag_id: None)
    client = TestClient(runpy.run_path(str(PLUGIN))["_app"](), headers={"Authorization": "Bearer x"})
    assert client.get(f"/report/{allowed}/{quote(RUN)}/detect/").status_code == 200
    assert client.get(f"/report/{allowed}_other/{quote(RUN)}/detect/").status_code == 403


@pytest.mark.stack
@pytest.mark.timeout(600)
class TestInAirflow:
    """Requests over HTTP to the real API server."""

    @pytest.fixture(scope="class")
    def url(self, stack_settings):
        return f"{stack_settings.airflow_url}/airloop/report/{project_names()[0]}__monitor/{quote(RUN)}/detect/"

    @pytest.fixture(scope="class")
    def browser(self, stack_settings, api):
        """Return a client that is logged in as a browser is, with the token in a cookie."""
        return httpx.Client(cookies={"_token": api.token}, timeout=60, trust_env=False)

    @pytest.fixture(autouse=True, scope="class")
    def report(self, stack_settings):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack_settings.environment().items():
                patch.setenv(name, value)
            get_settings.cache_clear()
            write_report(f"{project_names()[0]}__monitor")
        get_settings.cache_clear()

    def test_a_logged_in_browser_sees_the_report_and_its_assets(self, browser, url):
        page = browser.get(url)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "a report" in page.text
        assert browser.get(f"{url}static/plot.js").text == "draw()"

    def test_a_report_may_not_call_the_api_in_its_readers_name(self, browser, url):
        assert "connect-src 'none'" in browser.get(url).headers["content-security-policy"]

    @pytest.mark.parametrize("cookies", [{}, {"_token": "forged"}], ids=["nobody", "a forged token"])
    def test_others_see_nothing(self, api, url, cookies):
        answer = httpx.get(url, cookies=cookies, trust_env=False)
        assert answer.status_code == 401
        assert "report" not in answer.text

    def test_a_task_without_a_report_says_so_in_a_page(self, browser, url):
        page = browser.get(url.replace("/detect/", "/%3Cscript%3E/"))
        assert page.status_code == 404
        assert "made no report" in page.text
        assert "<script>" not in page.text

    def test_encoded_dots_do_not_climb(self, browser, url):
        assert browser.get(f"{url}%2e%2e%2fsecret.txt").status_code == 404
        assert browser.get(f"{url}..%2fsecret.txt").status_code == 404

    def test_the_tab_stands_on_every_task_instance(self, api):
        views = [view for plugin in api.call("GET", "plugins")["plugins"] for view in plugin["external_views"]]
        assert [(view["name"], view["destination"]) for view in views if view["url_route"] == "report"] == [
            ("Report", "task_instance")
        ]
