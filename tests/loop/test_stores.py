"""The whole loop on S3, Postgres and Redis, undisturbed and under kills.

In the second run each server and each component of Airflow is killed. The result is the same as on
files (``test_loop.py``), and no secret leaks. Where there is a cluster, ``test_stores_pods.py``
runs the first one, with the same checks and with pods.
"""

import os
from contextlib import nullcontext

import pytest

from tests.loop.harness import a_house, ends_alike, on_s3, replay
from tests.loop.kills import kills
from tests.loop.probe import assert_nothing_leaks

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3000)]
KILLED = pytest.mark.skipif(
    not os.environ.get("AIRLOOP_TEST_LOOP_ON_SERVERS"),
    reason="one more whole loop, each server killed in its middle: AIRLOOP_TEST_LOOP_ON_SERVERS=yes runs it",
)

WITH_PODS = pytest.mark.skipif(
    bool(os.environ.get("KUBECONFIG")) and not os.environ.get("AIRLOOP_TEST_LOOP_ON_SERVERS"),
    reason="test_stores_pods.py runs this loop with pods; AIRLOOP_TEST_LOOP_ON_SERVERS=yes runs it with processes too",
)

KINDS = pytest.mark.parametrize("kind", [pytest.param("real", marks=WITH_PODS), pytest.param("killed", marks=KILLED)])


@KINDS
def test_the_loop_closes(kind, tmp_path, monkeypatch, endings, postgres_server, redis_server, s3):
    servers = {"postgres": postgres_server, "redis": redis_server, "s3": s3}
    with (
        endings.guarantee(kind),
        a_house(kind, tmp_path, monkeypatch, s3=s3, servers=(postgres_server, redis_server)) as house,
    ):
        with kills(house.settings, servers) if kind == "killed" else nullcontext():
            ended = replay(house)
        endings.keep(kind, ended)
        on_s3(house.settings, house.api)
        assert [file.name for file in house.settings.home.rglob("*.db")] == []  # nothing fell back to a file
        assert_nothing_leaks(kind, house.settings, house.api, s3)


@KINDS
def test_it_ends_as_on_files(kind, endings, request):
    ends_alike(endings.of(kind, request=request), endings.of("files", request=request))
