"""The storage module on files: writes are atomic and leave nothing behind.

For S3 see tests/integration/s3.
"""

import os
import threading

import pyarrow as pa
import pytest

from include.data import storage


@pytest.fixture
def folder(tmp_path):
    return storage.path(str(tmp_path / "store"))


def test_a_file_is_written_with_its_folder_and_replaced(folder):
    assert storage.write(folder / "a" / "b.json", "one") == folder / "a" / "b.json"
    storage.write(folder / "a" / "b.json", b"two")
    assert [(p.name, content) for p, content in storage.read_all(storage.files(folder / "a"))] == [("b.json", b"two")]


def test_a_reader_sees_the_old_file_or_the_new_one(folder):
    old, new = b"o" * (1 << 22), b"n" * (1 << 22)
    storage.write(folder / "f", old)
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add((folder / "f").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in (new, old) * 5:
        storage.write(folder / "f", content)
    done.set()
    reader.join()
    assert seen <= {old, new}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(folder, monkeypatch):
    storage.write(folder / "f", "old")
    monkeypatch.setattr(os, "replace", _full)
    monkeypatch.setattr(os, "rename", _full)
    with pytest.raises(OSError, match="no space"):
        storage.write(folder / "f", "new")
    assert [(p.name, content) for p, content in storage.read_all(storage.files(folder))] == [("f", b"old")]


def _full(*_, **__):
    raise OSError("no space")


def test_a_folder_is_removed_and_a_missing_one_is_empty(folder):
    storage.write(folder / "a" / "b" / "c", "x")
    assert storage.files(folder / "a") == []  # b is not a file
    storage.remove(folder / "a")
    storage.remove(folder / "a")
    assert not (folder / "a").exists() and storage.files(folder / "a") == []


def test_a_table_comes_back(folder):
    rows = pa.table({"a": [1, 2]})
    content = storage.write_parquet(folder / "t.parquet", rows)
    assert storage.read_parquet(folder / "t.parquet") == rows and (folder / "t.parquet").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        storage.read_parquet(folder / "none.parquet")


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONDITIONAL_PUT": "etag"}),
        (
            {"AWS_DEFAULT_REGION": "eu-west-1"},
            {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_CONDITIONAL_PUT": "etag"},
        ),
        (
            {"AWS_REGION": "r", "AWS_ENDPOINT_URL": "http://x:1"},
            {
                "AWS_REGION": "r",
                "AWS_DEFAULT_REGION": "r",
                "AWS_CONDITIONAL_PUT": "etag",
                "MLFLOW_S3_ENDPOINT_URL": "http://x:1",
                "AWS_ENDPOINT_URL": "http://x:1",
                "AWS_ALLOW_HTTP": "true",
            },
        ),
        (
            {"AWS_REGION": "r", "AWS_ENDPOINT_URL": "https://x", "AWS_ALLOW_HTTP": "true"},
            {
                "AWS_REGION": "r",
                "AWS_DEFAULT_REGION": "r",
                "AWS_CONDITIONAL_PUT": "etag",
                "MLFLOW_S3_ENDPOINT_URL": "https://x",
                "AWS_ENDPOINT_URL": "https://x",
            },
        ),
    ],
    ids=["nothing given", "a region", "plain http is allowed where the endpoint is http", "and only there"],
)
def test_what_follows_from_the_standard_variables(given, wanted):
    storage.complete(given)
    assert given == wanted
