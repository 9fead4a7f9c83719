"""Fixtures of the loop tests: an S3 server, and the outcome of each loop."""

import os

import pytest

from tests.integration.s3.conftest import s3, s3_host  # noqa: F401
from tests.loop.harness import Endings


@pytest.fixture(scope="session")
def endings(tmp_path_factory) -> Endings:
    folder = tmp_path_factory.getbasetemp()
    return Endings(folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder)
