"""Labels over the API become files in the landing zone once, with their origin."""

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from serving import keys
from serving.app import create_app
from serving.settings import Settings
from tests.serving.harness import NAME

ID = "0" * 31 + "1"
BY_ID = {"prediction_id": ID, "label": 1, "known_at": "2026-01-01T12:00:00Z"}
BY_ENTITY = {"entity": {"shop": "a", "customer": 7}, "event_timestamp": "2026-01-01T14:00:00+02:00", "label": 0.5}


@pytest.fixture
def client(tmp_path):
    """Return the client of a service with keys and one known model. Its threads are not started."""
    file = tmp_path / "keys.json"
    made = {name: keys.create(file, name, ["feedback"]) for name in ("shop-app", "other-app")}
    settings = Settings(
        profile="compose",
        keys_file=file,
        models=NAME,
        feature_repo=tmp_path,
        log_root=tmp_path / "store",
        cache=tmp_path / "cache",
        max_bytes=50_000,
    )
    client = TestClient(create_app(settings), base_url="http://localhost", raise_server_exceptions=False)
    client.headers["X-API-Key"] = made["shop-app"]
    client.folder, client.other = tmp_path / "store" / NAME / "landing" / "feedback", made["other-app"]
    return client


def send(client, *labels, **headers):
    return client.post("/feedback", json={"model": NAME, "labels": list(labels)}, headers=headers)


def landed(client) -> list[dict]:
    return [row for file in sorted(client.folder.glob("[!.]*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_labels_lie_in_the_landing_zone_with_where_they_came_from(client):
    answer = send(client, BY_ID, BY_ENTITY)
    assert (answer.status_code, answer.json()["labels"], answer.json()["repeated"]) == (200, 2, False)
    first, second = landed(client)
    assert (first["prediction_id"], first["entity"], first["label"], first["sent_by"]) == (ID, "", 1.0, "shop-app")
    assert first["known_at"].isoformat() == "2026-01-01T12:00:00+00:00"
    assert (second["entity"], second["event_timestamp"], second["label"]) == (
        '{"shop":"a","customer":7}',
        "2026-01-01T12:00:00Z",
        0.5,
    )
    assert second["known_at"] == second["received_at"]


def test_sending_again_writes_nothing_new(client):
    first = send(client, BY_ID, BY_ENTITY).json()
    again = send(client, BY_ENTITY, BY_ID).json()  # in any order
    assert again == {**first, "repeated": True}
    assert len(landed(client)) == 2


def test_another_label_and_another_caller_are_other_files_and_the_same_outcome_has_one_id(client):
    send(client, BY_ID)
    send(client, {**BY_ID, "label": 0})  # a contradiction, which ingest refuses
    send(client, BY_ID, **{"X-API-Key": client.other})
    rows = landed(client)
    assert sorted((row["label"], row["sent_by"]) for row in rows) == [
        (0.0, "shop-app"),
        (1.0, "other-app"),
        (1.0, "shop-app"),
    ]
    assert len({row["label_id"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ({"label": 1}, "labels[0]"),
        ({**BY_ID, **BY_ENTITY}, "labels[0]"),
        ({"entity": {"shop": "a"}, "label": 1}, "labels[0]"),
        ({**BY_ENTITY, "event_timestamp": "2026-01-01T12:00:00"}, "labels[0].event_timestamp"),
        ({**BY_ID, "prediction_id": "../../etc"}, "labels[0].prediction_id"),
        ({**BY_ID, "label": "1"}, "labels[0].label"),
        ({**BY_ID, "label": True}, "labels[0].label"),
        ({**BY_ID, "weight": 100}, "labels[0].weight"),
    ],
)
def test_what_is_no_label_is_refused_and_named(client, label, field):
    answer = send(client, label)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert not client.folder.exists()


def test_other_refusals(client):
    assert send(client, BY_ID, BY_ID).json()["field"] == "labels[1]"
    # The registry has not answered yet, so no model is known.
    assert client.post("/feedback", json={"model": "../others", "labels": [BY_ID]}).status_code == 503
    assert client.post("/feedback", content=b"{").status_code == 400
    assert (
        client.post(
            "/feedback",
            content=b'{"model": "%s", "labels": [{"prediction_id": "%s", "label": NaN}]}'
            % (NAME.encode(), ID.encode()),
        ).status_code
        == 422
    )
    assert client.post("/feedback", content=b" " * 60_000).status_code == 413
    assert send(client, BY_ID, **{"X-API-Key": "unknown"}).status_code == 401
    assert not client.folder.exists()


def test_a_landing_zone_that_is_away_is_told_and_nothing_is_half_taken(client):
    client.folder.parent.mkdir(parents=True)
    client.folder.write_text("in the way")
    answer = send(client, BY_ID)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    client.folder.unlink()
    assert send(client, BY_ID).json()["repeated"] is False
    assert len(landed(client)) == 1
