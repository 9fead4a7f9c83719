"""Checkpoints in a bucket."""

import pytest

from include.data import storage
from include.training import usage
from include.training.checkpoint import Checkpoints


def test_removing_is_safe_where_there_is_none_and_takes_what_there_is(s3_store):
    checkpoints = Checkpoints.from_manifest(f"{s3_store}/flights/training/r/fit-a.json")
    checkpoints.remove()
    storage.write(checkpoints.folder / "state.pt", b"x")
    checkpoints.remove()
    assert storage.files(checkpoints.folder) == [] and not checkpoints.folder.exists()
    checkpoints.remove()


def test_what_is_saved_is_loaded_again_by_who_looks_before_and_after(s3_store):
    uri = f"{s3_store}/flights/training/r/fit-a.json"
    checkpoints, other = (Checkpoints.from_manifest(uri, {"of": "one"}) for _ in range(2))
    assert other.load() == b""
    for step in (1, 2):
        checkpoints.save({"step": step})
        assert other.state(other.load()) == {"step": step}
    assert Checkpoints.from_manifest(uri, {"of": "another"}).state(other.load()) is None
    assert [path.name for path in storage.files(checkpoints.folder)] == ["state.pt"]


def test_a_bucket_that_is_missing_is_said_and_not_made(s3_store, s3):
    with pytest.raises(storage.StorageUnavailableError, match="there is no such bucket"):
        Checkpoints.from_manifest("s3://no-such-bucket/fit-a.json").save({"step": 1})
    assert not (s3.folder / "no-such-bucket").exists()


def test_what_pods_cost_is_kept_beside_the_manifest(s3_store):
    uri = f"{s3_store}/flights/training/r/fit-a.json"
    assert usage.read(uri) == {}
    for uid in ("a", "b"):
        usage.keep(uri, {"uid": uid})
    assert usage.read(uri).keys() == {"a", "b"}
