"""The storage module on a real S3 server.

It provides atomic writes, fresh listings, Delta tables with concurrent writers, and errors that
name the fix.
"""

import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from include.data import layout, storage, tables
from include.projects import get_project
from include.settings import REPOSITORY
from tests.integration.children import child
from tests.integration.s3.conftest import SECRET_KEY, forget

FLIGHTS = get_project("flights")


def test_what_another_process_writes_is_seen_at_once(s3_store):
    folder = layout.landing(FLIGHTS, FLIGHTS.source("weather"))
    assert storage.files(folder) == [] and not folder.exists()
    write = f"from include.data import storage\nstorage.write(storage.path({str(folder)!r}) / 'a.json', 'one')"
    subprocess.run([sys.executable, "-c", write], cwd=REPOSITORY, check=True)
    assert [p.name for p in storage.files(folder)] == ["a.json"] and folder.exists()
    assert [content for _, content in storage.read_all(storage.files(folder))] == [b"one"]
    storage.remove(folder)
    assert storage.files(folder) == [] and not folder.exists()
    storage.remove(folder)  # safe to repeat


def test_a_folders_own_mark_is_no_file(s3_store):
    folder = storage.path(s3_store) / "marked"
    storage.write(folder / "file", "x")
    # As S3 consoles do.
    folder.fs.call_s3(
        "put_object", Bucket=folder.path.partition("/")[0], Key=f"{folder.path.partition('/')[2]}/", Body=b""
    )
    assert [p.name for p in storage.files(folder)] == ["file"]


def test_a_big_file_is_put_whole_or_not_at_all(s3_store, s3):
    target, content = storage.path(s3_store) / "big", os.urandom(1 << 20) * 60  # larger than one part
    storage.write(target, content)
    assert target.read_bytes() == content
    # Kill another process while it writes a third version.
    write = (
        "from include.data import storage\nprint('begins', flush=True)\nfor _ in range(99):"
        f" storage.write(storage.path({str(target)!r}), b'2' * (1 << 26))"
    )
    child = subprocess.Popen([sys.executable, "-c", write], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"begins\n"
    for _ in range(8):
        time.sleep(0.1)
        assert len(target.read_bytes()) in (len(content), 1 << 26)
    child.kill()
    child.wait()
    assert len(target.read_bytes()) in (len(content), 1 << 26)


WRITERS, APPENDS = 6, 4


def append_some(uri: str, writer: int) -> None:
    storage.path(uri)
    for number in range(APPENDS):
        tables.append(uri, pa.table({"writer": [writer], "number": [number]}), writer=f"w{writer}", sequence=number + 1)


def test_no_append_is_lost_with_many_writers(s3_store):
    uri = layout.table(FLIGHTS, "quarantine")
    writers = [child(append_some, uri, writer) for writer in range(WRITERS)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0] * WRITERS
    table = tables.open_table(uri)
    rows = sorted((r["writer"], r["number"]) for r in table.to_pyarrow_table().to_pylist())
    assert rows == [(w, n) for w in range(WRITERS) for n in range(APPENDS)]
    assert table.version() == WRITERS * APPENDS - 1
    assert table.transaction_version("w3") == APPENDS


@pytest.mark.parametrize(
    "change, parts",
    [
        pytest.param(
            {"AIRLOOP_DATA_ROOT": "s3://no-such-bucket/prefix"},
            ["'no-such-bucket'", "there is no such bucket", "AIRLOOP_DATA_ROOT"],
            id="bucket missing",
        ),
        pytest.param(
            {"AWS_SECRET_ACCESS_KEY": "wrong-one"},
            ["the credentials are refused", "the variables AWS_*"],
            id="wrong secret",
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": "somebody"}, ["the credentials are refused", "access key somebody"], id="unknown key"
        ),
        pytest.param(
            {"AWS_SECRET_ACCESS_KEY": "wrong-one", "AIRLOOP_STORAGE_CONNECTION": "our_store"},
            ["Airflow connection 'our_store'"],
            id="wrong secret of a connection",
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            ["http://127.0.0.1:9", "does not answer", "start it"],
            id="endpoint away",
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            ["there are no credentials", "AWS_ACCESS_KEY_ID"],
            id="no credentials",
        ),
    ],
)
def test_who_cannot_get_in_is_told_what_to_do(s3_store, monkeypatch, change, parts):
    # Otherwise botocore asks the cloud's metadata service, which does not exist here.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    forget()
    began = time.monotonic()
    with pytest.raises(storage.StorageUnavailableError) as refused:
        layout.project_root(FLIGHTS)
    assert time.monotonic() - began < 15
    assert [
        part for part in [*parts, "bucket '", "docs/runbooks/storage.md"] if part not in str(refused.value)
    ] == [], str(refused.value)
    assert SECRET_KEY not in str(refused.value) and "wrong-one" not in str(refused.value)


@pytest.mark.parametrize(
    "command, change, message",
    [
        (
            ["replay", "flights", "--since", "2012-12-30", "--until", "2013-01-01"],
            {"AIRLOOP_DATA_ROOT": "s3://no-such-bucket/x"},
            "there is no such bucket",
        ),
        (["up"], {"AWS_SECRET_ACCESS_KEY": "wrong-one"}, "the credentials are refused"),
        (["up"], {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer"),
    ],
    ids=["feed, bucket missing", "up, wrong secret", "up, endpoint away"],
)
def test_commands_say_it_too_and_begin_nothing(s3_store, fresh_store, command, change, message):
    done = subprocess.run(
        [sys.executable, "-m", "include.cli", *command],
        cwd=REPOSITORY,
        env=os.environ | change,
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = done.stdout + done.stderr
    assert (
        done.returncode != 0
        and message in output
        and "docs/runbooks/storage.md" in output
        and "Traceback" not in output
    ), output
    assert (
        not (fresh_store / "ledger.db").exists()
        and not list(fresh_store.glob("run/*.json"))
        and not (fresh_store / "airflow" / "airflow.db").exists()
    )


def test_it_is_asked_again_after_a_failure(s3_store, monkeypatch):
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(storage.StorageUnavailableError):
        layout.project_root(FLIGHTS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", right)
    assert not layout.project_root(FLIGHTS).exists()


def test_a_landing_zone_is_listed_read_and_copied(s3_store):
    folder = storage.path(s3_store) / "zone"
    assert storage.entries(folder) == []
    storage.write(folder / "a.csv", "one")
    storage.write(folder / "below" / "b.csv", "two")
    # Marker object of the folder.
    folder.fs.call_s3(
        "put_object", Bucket=folder.path.partition("/")[0], Key=f"{folder.path.partition('/')[2]}/", Body=b""
    )
    assert [(entry.path.name, entry.kind, entry.size) for entry in storage.entries(folder)] == [
        ("a.csv", "file", 3),
        ("below", "folder", 0),
    ]
    (_, content), (_, gone) = storage.read_each([folder / "a.csv", folder / "gone.csv"])
    assert content == b"one"
    assert isinstance(gone, FileNotFoundError)
    assert storage.copy(folder / "a.csv", folder / "kept" / "a.csv")
    assert (folder / "kept" / "a.csv").read_bytes() == b"one"
    assert not storage.copy(folder / "gone.csv", folder / "kept" / "gone.csv")
