"""Access requires a valid key, and no answer contains a secret."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from serving import keys
from serving.access import callers as access_module
from serving.app import create_app
from serving.keys import KeysError
from serving.problems import media_type
from serving.settings import Settings
from tests.serving.harness import LOCAL, NAME
from tests.waiting import wait_for

ELSEWHERE = ("192.0.2.7", 50000)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("project: tests\nprovider: local\n")
    return Settings(
        mlflow_uri=f"sqlite:///{tmp_path / 'none.db'}",
        feature_repo=tmp_path,
        log_root=tmp_path / "store",
        cache=tmp_path / "cache",
    )


@pytest.fixture
def made(tmp_path):
    """Return a file of keys, and the keys."""
    file = tmp_path / "keys.json"
    return file, {role: keys.create(file, f"the-{role}-one", [role]) for role in keys.ROLES}


@pytest.fixture
def ask(settings, made, monkeypatch):
    """Return a function that sends a request to a service with keys.

    Its threads are not started, because no test needs them.
    """
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    client = TestClient(
        create_app(settings.model_copy(update={"profile": "compose", "keys_file": made[0]})),
        client=ELSEWHERE,
        raise_server_exceptions=False,
    )

    def ask(path: str, key: str | None = None, *, method: str = "GET", header: str = "Authorization"):
        headers = (
            {} if key is None else {header.encode(): (f"Bearer {key}" if header == "Authorization" else key).encode()}
        )
        return client.request(method, path, headers=headers)

    return ask


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        f"/models/{NAME}",
        f"/models/{NAME}/predict",
        "/v2",
        "/metrics",
        "/feedback",
        "/docs",
        "/openapi.json",
        "/nothing",
    ],
)
@pytest.mark.parametrize(
    "key", [None, "", "airloop_guess", "ü"], ids=["no key", "an empty key", "an unknown key", "an odd key"]
)
def test_a_stranger_gets_nothing(ask, path, key):
    answer = ask(path, key)
    assert (answer.status_code, answer.headers["content-type"], answer.headers["www-authenticate"]) == (
        401,
        media_type(path),
        "Bearer",
    )
    assert (answer.json()["status"], answer.json()["type"]) == (401, "urn:airloop:no-key")
    assert "guess" not in answer.text


def test_health_needs_no_key(ask):
    assert ask("/live").json() == {"status": "live"}


@pytest.mark.parametrize(
    ("path", "opened_by"),
    [
        ("/models", {"predict", "admin"}),
        ("/v2/models/x", {"predict", "admin"}),
        ("/feedback", {"feedback", "admin"}),
        ("/metrics", {"metrics", "admin"}),
        ("/openapi.json", set(keys.ROLES)),
    ],
)
def test_each_role_opens_its_own_paths(ask, made, path, opened_by):
    answers = {role: ask(path, key).status_code for role, key in made[1].items()}
    assert {role for role, status in answers.items() if status not in (401, 403)} == opened_by
    assert all(status == 403 for role, status in answers.items() if role not in opened_by)


def test_both_headers_carry_a_key(ask, made):
    assert ask("/models", made[1]["predict"], header="X-API-Key").status_code == 200
    assert (
        ask("/models", made[1]["feedback"], header="X-API-Key").json()["detail"]
        == "key 'the-feedback-one' has not the role 'predict'"
    )


def test_who_asks_too_often_is_told_when_to_come_back(ask, made):
    slow = keys.create(made[0], "slow", ["predict"], rate=0.05, burst=3)
    answers = [ask("/models", slow) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert ask("/models", made[1]["predict"]).status_code == 200  # rates of other callers are separate


def test_keys_change_without_a_restart_and_a_broken_file_changes_nothing(ask, made):
    file, known = made
    new = keys.create(file, "new", ["predict"])
    assert ask("/models", new).status_code == 200
    whole = file.read_text()
    file.write_text(whole[:100])
    assert ask("/models", new).status_code == 200
    file.unlink()
    assert ask("/models", new).status_code == 200
    file.write_text(json.dumps({"keys": [key for key in json.loads(whole)["keys"] if key["name"] != "new"]}))
    assert ask("/models", new).status_code == 401
    assert ask("/models", known["predict"]).status_code == 200


def test_an_expired_key_opens_nothing(ask, made):
    now = datetime.now(UTC)
    old = keys.create(made[0], "old", ["predict"], expires=now - timedelta(seconds=1))
    young = keys.create(made[0], "young", ["predict"], expires=now + timedelta(hours=1))
    assert (ask("/models", old).status_code, ask("/models", young).status_code) == (401, 200)


def test_without_keys_only_this_machine_is_answered(settings):
    application = create_app(settings)
    for client, status in (
        (LOCAL, 200),
        (("::1", 1), 200),
        (("127.9.9.9", 1), 200),
        (ELSEWHERE, 401),
        (("::ffff:192.0.2.7", 1), 401),
        (("odd", 1), 401),
    ):
        assert (
            TestClient(application, base_url="http://localhost", client=client).get("/models").status_code == status
        ), client
    assert TestClient(application, client=ELSEWHERE).get("/live").status_code == 200


@pytest.mark.parametrize("profile", ["compose", "kubernetes"])
def test_outside_embedded_it_does_not_start_without_keys(profile):
    with pytest.raises(ValueError, match="SERVING_KEYS_FILE is not set"):
        Settings(profile=profile)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "valid dictionary"),
        (
            '{"keys": [{"name": "a", "sha256": "s3cret", "roles": ["predict"]}]}',
            "keys.0.sha256: String should match pattern",
        ),
        (
            '{"keys": [{"name": "a", "sha256": "%s", "roles": ["king"]}]}' % ("0" * 64),
            "keys.0.roles.0: Input should be 'predict'",
        ),
        (
            '{"keys": [{"name": "a", "sha256": "%s", "roles": []}]}' % ("0" * 64),
            "keys.0.roles: Tuple should have at least 1",
        ),
        (
            '{"keys": [%s, %s]}' % (('{"name": "a", "sha256": "%s", "roles": ["admin"]}' % ("0" * 64),) * 2),
            "name occurs twice: a",
        ),
        (
            '{"keys": [{"name": "a", "key": "s3cret", "sha256": "%s", "roles": ["admin"]}]}' % ("0" * 64),
            "keys.0.key: Extra inputs",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_quoted(tmp_path, content, message):
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(KeysError) as error:
        keys.read(file)
    assert message in str(error.value) and str(file) in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_missing_file_stops_the_start(settings, tmp_path):
    with pytest.raises(KeysError, match=r"no\.json: No such file"):
        create_app(settings.model_copy(update={"keys_file": tmp_path / "no.json"}))


def test_the_command_makes_keys_and_lists_them_without_showing_them(tmp_path, capsys):
    file = tmp_path / "keys.json"
    assert (
        keys.main(
            ["create", "--name", "checkout", "--role", "predict", "--role", "feedback", "--rate", "200", str(file)]
        )
        == 0
    )
    key = capsys.readouterr().out.strip()
    assert len(key) > 40
    assert key not in file.read_text() and keys.digest(key.encode()) in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys.main(["create", "--name", "checkout", "--role", "admin", str(file)]) == 1
    assert "has a key 'checkout' already" in capsys.readouterr().err
    assert keys.main(["create", "--name", "No!", "--role", "admin", str(file)]) == 1
    assert keys.main(["list", str(file)]) == 0
    assert capsys.readouterr().out == "checkout: predict, feedback; 200 requests a second\n"


def test_ready_tells_details_to_whoever_has_a_key(settings, made):
    with TestClient(create_app(settings.model_copy(update={"keys_file": made[0]})), client=ELSEWHERE) as client:
        known = wait_for(
            lambda: (a := client.get("/ready", headers={"X-API-Key": made[1]["metrics"]})).status_code == 200 and a, 180
        )
        assert known.json()["registry"]["uri"] == settings.mlflow_uri and known.json()["keys"] == {"error": None}
        assert client.get("/ready").json() == {"status": "ready"}
