"""The whole loop through a real stack on S3, Postgres and Redis; and on those once more while each server and each part of Airflow is killed in the middle.
It comes to the same as on files (``test_loop.py``), and the secret is nowhere to be found.
"""

import os
from contextlib import nullcontext

import pytest

from tests.loop.kills import kills
from tests.loop.probe import nothing_is_told
from tests.loop.stand import a_house, ends_alike, on_s3, replay

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]
KILLED = pytest.mark.skipif(
    not os.environ.get("AIRLOOP_TEST_LOOP_ON_SERVERS"), reason="one more whole loop, each server killed in its middle: AIRLOOP_TEST_LOOP_ON_SERVERS=yes runs it"
)


KINDS = pytest.mark.parametrize("kind", ["real", pytest.param("killed", marks=KILLED)])


@KINDS
def test_the_loop_closes(kind, tmp_path, monkeypatch, endings, postgres_server, redis_server, s3):
    servers = {"postgres": postgres_server, "redis": redis_server, "s3": s3}
    with endings.told(kind), a_house(kind, tmp_path, monkeypatch, s3=s3, servers=(postgres_server, redis_server)) as house:
        with kills(house.settings, servers) if kind == "killed" else nullcontext():
            ended = replay(house)
        endings.keep(kind, ended)
        on_s3(house.settings, house.api)
        assert [file.name for file in house.settings.home.rglob("*.db")] == []  # nothing fell back to a file
        nothing_is_told(kind, house.settings, house.api, s3)


@KINDS
def test_it_ends_as_on_files(kind, endings, request):
    ends_alike(endings.of(kind, request=request), endings.of("files", request=request))
