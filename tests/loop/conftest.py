"""What test_stores.py runs on: a cluster where ``KUBECONFIG`` names one, and an S3 server that its pods reach."""

import pytest

from tests.cluster.conftest import NoCluster, a_cluster, address_for_pods
from tests.integration.s3.conftest import s3  # noqa: F401


@pytest.fixture(scope="session")
def some_cluster():
    """A namespace of its own; None where there is no cluster: then training steps are processes there, too."""
    try:
        with a_cluster() as found:
            yield found
    except NoCluster as missing:
        print(f"training steps are processes on S3, too: {missing}")
        yield None


@pytest.fixture(scope="session")
def s3_host(some_cluster) -> str:
    return address_for_pods(some_cluster) if some_cluster else "127.0.0.1"
