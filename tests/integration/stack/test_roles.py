"""Rights per role in Airflow and in the plugin's pages, checked on a real API server.

The tests run once with FAB's users and once with SimpleAuthManager's.
"""

import html
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from secrets import token_urlsafe
from urllib.parse import quote

import httpx
import jwt
import pytest
from pydantic import SecretStr

from include.dag_kit.users import ROLES as ROLES_OF_FAB
from include.data import layout
from include.projects import get_project, project_names
from include.settings import REPOSITORY, Settings, get_settings
from include.stack.accounts import users
from include.stack.api import AirflowApi
from include.stack.environment import airflow_environment
from include.stack.services import migration
from tests.ports import free_port

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]

PROJECT = project_names()[0]
MONITOR, TRAIN = f"{PROJECT}__monitor", f"{PROJECT}__train"
RUN = "manual__2013-02-01T00:00:00+00:00"
PEOPLE = {"vera": "viewer", "eddie": "editor", "olga": "operator"}
SIMPLE = {"viewer": "viewer", "editor": "user", "operator": "op", "admin": "admin"}  # roles of SimpleAuthManager


@dataclass
class Airflow:
    """An API server, its settings, and all passwords."""

    settings: Settings
    environment: dict[str, str]
    passwords: dict[str, str] = field(default_factory=dict)

    def as_(self, role: str) -> AirflowApi:
        name = next((name for name, has in PEOPLE.items() if has == role), role)
        return AirflowApi(self.settings.airflow_url, name, self.passwords[name])

    def make(self, name: str, role: str) -> None:
        """Create an account through FAB's own API, as its admin does.

        The command would start a process of Airflow for each account.
        """
        self.passwords[name] = token_urlsafe(15)
        person = {
            "username": name,
            "first_name": name,
            "last_name": name,
            "email": f"{name}@localhost",
            "password": self.passwords[name],
        }
        headers = {"Authorization": f"Bearer {self.as_('admin').token}"}
        made = httpx.post(
            f"{self.settings.airflow_url}/auth/fab/v1/users",
            json=person | {"roles": [{"name": role}]},
            headers=headers,
            timeout=60,
            trust_env=False,
        )
        assert made.is_success, made.text

    def report(self, dag_id: str, **arguments) -> httpx.Response:
        return httpx.get(
            f"{self.settings.airflow_url}/airloop/report/{dag_id}/{quote(RUN)}/detect/",
            timeout=60,
            trust_env=False,
            **arguments,
        )

    def rollout(self, role: str, dag_id: str = MONITOR, act: str = "", **fields) -> httpx.Response:
        """Return the page Rollout, or the answer to one of its forms, for this role."""
        address, cookies = (
            f"{self.settings.airflow_url}/airloop-rollout/{dag_id}/{act}",
            {"_token": self.as_(role).token},
        )
        with httpx.Client(cookies=cookies, timeout=120, trust_env=False) as browser:
            return browser.post(address, data=fields) if act else browser.get(address)

    def status(self, role: str, method: str, path: str, **arguments) -> int:
        """Return the status code of the API's answer to this role."""
        bearer = {"Authorization": f"Bearer {self.as_(role).token}"}
        return httpx.request(
            method, f"{self.settings.airflow_url}{path}", headers=bearer, timeout=60, trust_env=False, **arguments
        ).status_code


@contextmanager
def api_server(airflow: Airflow):
    """Run the API server, with a report of the project's monitor DAG and one of its train DAG."""
    log = airflow.settings.home / "api-server.log"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in airflow.settings.environment().items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        for dag_id in (MONITOR, TRAIN):
            folder = layout.report(get_project(PROJECT), dag_id, RUN, "detect")
            folder.mkdir(parents=True)
            (folder / "index.html").write_text(f"a report of {dag_id}")
    get_settings.cache_clear()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server"],
            env=airflow.environment,
            cwd=REPOSITORY,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 600
        while not _answers(airflow.settings):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield airflow
    finally:
        server.terminate()
        server.wait(60)


def _answers(settings: Settings) -> bool:
    try:
        return httpx.get(f"{settings.airflow_url}/api/v2/monitor/health", timeout=10, trust_env=False).is_success
    except httpx.TransportError:
        return False


def settings_of(home, **more) -> Settings:
    (home / "dags").mkdir(parents=True)
    return Settings(home=home, dags_folder=home / "dags", airflow_port=free_port(), **more)


def _registry(settings: Settings) -> dict[str, str]:
    """Return a registry without a server in which no model is registered."""
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{settings.home / 'mlflow.db'}", "MLFLOW_DISABLE_TELEMETRY": "true"}


def migrate(settings: Settings) -> None:
    command = migration(settings)
    done = subprocess.run(
        command.arguments,
        env=command.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def fab(tmp_path_factory):
    settings = settings_of(tmp_path_factory.mktemp("fab"), auth_manager="fab", airflow_admin_password=token_urlsafe(15))
    migrate(settings)
    assert users.sync(settings) == "admin made"
    assert users.sync(settings) == "admin is as it should be"
    airflow = Airflow(settings, airflow_environment(settings) | _registry(settings) | {"AIRFLOW__FAB__CACHE_TTL": "1"})
    airflow.passwords["admin"] = settings.airflow_admin_password.get_secret_value()
    with api_server(airflow):
        for name, role in PEOPLE.items():
            airflow.make(name, ROLES_OF_FAB[role])
        yield airflow


@pytest.fixture(scope="module")
def simple(tmp_path_factory):
    settings = settings_of(tmp_path_factory.mktemp("simple"))
    migrate(settings)
    environment = airflow_environment(settings) | _registry(settings)
    people = PEOPLE | {"admin": "admin"}
    passwords = {name: token_urlsafe(15) for name in people}
    file = settings.home / "airflow" / "simple_auth_manager_passwords.json.generated"
    passwords["admin"] = json.loads(file.read_text())["admin"]
    file.write_text(json.dumps(passwords))
    environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(
        f"{name}:{SIMPLE[role]}" for name, role in people.items()
    )
    with api_server(Airflow(settings, environment, passwords)) as airflow:
        yield airflow


@pytest.fixture(params=["fab", "simple"])
def airflow(request) -> Airflow:
    return request.getfixturevalue(request.param)


ROLES = ("viewer", "editor", "operator", "admin")
NEW_POOL = {"name": "of_a_test", "slots": 1, "description": "test", "include_deferred": False}


@pytest.mark.parametrize("role", ROLES)
def test_every_role_reads_reports_of_dags_that_it_sees(airflow, role):
    for carried in (
        {"headers": {"Authorization": f"Bearer {airflow.as_(role).token}"}},
        {"cookies": {"_token": airflow.as_(role).token}},
    ):
        answer = airflow.report(MONITOR, **carried)
        assert answer.status_code == 200 and f"a report of {MONITOR}" in answer.text


@pytest.mark.parametrize("role", ROLES)
def test_every_role_sees_the_tab_of_the_reports(airflow, role):
    if airflow.settings.users == "simple" and role == "viewer":
        pytest.skip("SimpleAuthManager's viewer may not list plugins, and its roles cannot be changed")
    assert airflow.status(role, "GET", "/api/v2/plugins") == 200


@pytest.mark.parametrize("role, may", [("viewer", False), ("editor", True), ("operator", True), ("admin", True)])
def test_running_a_dag_takes_an_editor(airflow, role, may):
    answer = airflow.status(role, "POST", f"/api/v2/dags/{MONITOR}/dagRuns", json={"logical_date": None})
    # The DAG does not exist here, which only a user who might run it learns.
    assert answer == (404 if may else 403)


@pytest.mark.parametrize("role, may", [("viewer", False), ("editor", True), ("operator", True), ("admin", True)])
def test_acting_on_what_is_deployed_takes_an_editor_and_his_name_is_on_record(airflow, role, may):
    page = airflow.rollout(role)
    assert page.status_code == 200 and "nothing is deployed" in page.text and ("<form" in page.text) == may, page.text
    if not may:
        refused = airflow.rollout(role, act="freeze", reason="audit")
        assert (
            refused.status_code == 403
            and "your account may not start" in refused.text
            and "audit" not in airflow.rollout("admin").text
        )
        return
    name = next((name for name, has in PEOPLE.items() if has == role), role)
    frozen = airflow.rollout(role, act="freeze", reason=f"audit by {role}", token=token_of(page))
    assert frozen.status_code == 200 and f"by {name} in the UI: audit by {role}" in frozen.text, frozen.text
    thawed = airflow.rollout(role, act="thaw", token=token_of(frozen))
    assert thawed.status_code == 200 and "Thawed" in thawed.text, thawed.text


def token_of(page: httpx.Response) -> str:
    return html.unescape(re.search(r'name="token" value="([^"]+)"', page.text)[1])


def test_a_token_of_the_page_is_of_one_person(airflow):
    refused = airflow.rollout("editor", act="freeze", reason="audit", token=token_of(airflow.rollout("operator")))
    assert refused.status_code == 403 and "Nothing was done." in refused.text


@pytest.mark.parametrize("role, may", [("viewer", False), ("editor", False), ("operator", True), ("admin", True)])
def test_changing_a_pool_takes_an_operator(airflow, role, may):
    answer = airflow.status(role, "POST", "/api/v2/pools", json=NEW_POOL | {"name": f"of_{role}"})
    assert answer == (201 if may else 403)


@pytest.mark.parametrize("role, may", [("viewer", False), ("editor", False), ("operator", False), ("admin", True)])
def test_accounts_are_the_admins(fab, role, may):
    assert fab.status(role, "GET", "/auth/fab/v1/users") == (200 if may else 403)


def test_who_sees_one_dag_only_reads_its_reports_only(fab):
    """A user who may read one DAG reads only its reports.

    A site may define such a role, for example for one project's DAGs.
    """
    admin = {"Authorization": f"Bearer {fab.as_('admin').token}"}
    actions = [("can_read", resource) for resource in (f"DAG:{MONITOR}", "DAG Runs", "Task Instances", "Website")]
    body = {
        "name": "Monitor only",
        "actions": [{"action": {"name": action}, "resource": {"name": resource}} for action, resource in actions],
    }
    _make_permission(fab, *actions[0])
    made = httpx.post(
        f"{fab.settings.airflow_url}/auth/fab/v1/roles", json=body, headers=admin, timeout=60, trust_env=False
    )
    assert made.is_success, made.text
    fab.make("mona", "Monitor only")
    bearer = {"Authorization": f"Bearer {AirflowApi(fab.settings.airflow_url, 'mona', fab.passwords['mona']).token}"}
    assert fab.report(MONITOR, headers=bearer).status_code == 200
    refused = fab.report(TRAIN, headers=bearer)
    assert refused.status_code == 403 and "a report" not in refused.text
    page = f"{fab.settings.airflow_url}/airloop-rollout"
    seen = httpx.get(f"{page}/{MONITOR}/", headers=bearer, timeout=60, trust_env=False)
    assert seen.status_code == 200 and "nothing is deployed" in seen.text and "<form" not in seen.text
    assert httpx.get(f"{page}/{TRAIN}/", headers=bearer, timeout=60, trust_env=False).status_code == 403


def _make_permission(fab: Airflow, action: str, resource: str) -> None:
    """Create the permission of an existing DAG, as `airflow sync-perm` does."""
    code = (
        "import sys\nfrom include.dag_kit.users import _manager\nwith _manager() as manager:\n   "
        " manager.create_permission(sys.argv[1], sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, action, resource],
        env=fab.environment,
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=300,
    )


def test_nobody_reads_nothing(airflow):
    for path in (
        f"/airloop/report/{MONITOR}/{quote(RUN)}/detect/",
        f"/airloop-rollout/{MONITOR}/",
        "/api/v2/dags",
        "/api/v2/plugins",
    ):
        answer = httpx.get(f"{airflow.settings.airflow_url}{path}", timeout=60, trust_env=False)
        assert answer.status_code == 401 and "a report" not in answer.text, path


def test_a_wrong_password_opens_nothing(airflow):
    for user, password in (
        ("admin", "admin"),
        ("admin", ""),
        ("airflow", "airflow"),
        ("vera", airflow.passwords["eddie"]),
    ):
        answer = httpx.post(
            f"{airflow.settings.airflow_url}/auth/token",
            json={"username": user, "password": password},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code in (400, 401, 422), (user, answer.text)


@pytest.mark.parametrize("how", ["bearer", "cookie"])
@pytest.mark.parametrize("what", ["forged", "expired", "signed by another", "of nobody"])
def test_a_token_that_is_none_is_401(airflow, how, what):
    good = airflow.as_("viewer").token
    # Tokens that are made this way are valid.
    assert carried(airflow, how, signed(airflow, good)).status_code == 200
    bad = {
        "forged": good[:-4] + "AAAA",
        "expired": signed(airflow, good, exp=int(time.time()) - 3600),
        "signed by another": signed(
            airflow, good, secret="somebody else's secret, which is long enough to be one at all, isn't it"
        ),
        "of nobody": signed(
            airflow, good, sub="424242" if airflow.settings.users == "fab" else "nobody", username=None, role=None
        ),
    }[what]
    answer = carried(airflow, how, bad)
    assert answer.status_code == 401 and "a report" not in answer.text


def carried(airflow: Airflow, how: str, token: str) -> httpx.Response:
    return airflow.report(
        MONITOR,
        **({"cookies": {"_token": token}} if how == "cookie" else {"headers": {"Authorization": f"Bearer {token}"}}),
    )


def signed(airflow: Airflow, token: str, secret: str | None = None, **changed) -> str:
    """Return the token with other claims, signed as Airflow does. None removes a claim."""
    claims = jwt.decode(token, options={"verify_signature": False}) | changed
    secret = secret or airflow.environment["AIRFLOW__API_AUTH__JWT_SECRET"]
    return jwt.encode(
        {k: v for k, v in claims.items() if v is not None}, secret, algorithm=jwt.get_unverified_header(token)["alg"]
    )


def test_an_account_that_is_removed_is_out(fab):
    password = users.add(fab.settings, "gone", "viewer")
    token = AirflowApi(fab.settings.airflow_url, "gone", password).token
    assert carried(fab, "bearer", token).status_code == 200
    users.remove(fab.settings, "gone")
    # The API server caches the user for this long in this test.
    time.sleep(1.5)
    assert carried(fab, "bearer", token).status_code == 401


def test_the_command_shows_and_refuses(fab):
    def airloop(*arguments):
        command = [sys.executable, "-m", "include.cli", "users", *arguments]
        environment = os.environ | fab.settings.environment()
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    listed = airloop("list").stdout
    assert "admin: admin <admin@localhost>" in listed and "olga: operator" in listed
    refused = airloop("add", "admin", "--role", "viewer")
    assert refused.returncode == 2 and "AIRLOOP_AIRFLOW_ADMIN_PASSWORD" in refused.stderr
    assert "no user 'nobody'" in airloop("remove", "nobody").stderr


def test_the_admins_password_is_the_secrets(fab):
    """The admin's password is the secret. This test runs last, because it changes it."""
    other = token_urlsafe(15)
    assert (
        users.sync(fab.settings.model_copy(update={"airflow_admin_password": SecretStr(other)}))
        == "admin has a new password"
    )
    AirflowApi(fab.settings.airflow_url, "admin", other).dag_ids()
    with pytest.raises(httpx.HTTPStatusError, match="login refused"):
        AirflowApi(fab.settings.airflow_url, "admin", fab.passwords["admin"]).dag_ids()


def test_one_developers_airflow_has_no_accounts_to_change(simple):
    with pytest.raises(users.UsersError, match="AIRLOOP_AUTH_MANAGER=fab"):
        users.add(simple.settings, "vera", "viewer")
