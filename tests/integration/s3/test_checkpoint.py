"""Checkpoints in a bucket."""

from include.data import storage
from include.training.checkpoint import Checkpoints


def test_removing_is_safe_where_there_is_none_and_takes_what_there_is(s3_store):
    checkpoints = Checkpoints.beside(f"{s3_store}/flights/training/r/fit-a.json")
    checkpoints.remove()
    storage.write(checkpoints.folder / "state.pt", b"x")
    checkpoints.remove()
    assert storage.files(checkpoints.folder) == [] and not checkpoints.folder.exists()
    checkpoints.remove()
