"""A project's feed makes files, and they arrive whole in the landing zone of their source."""

from datetime import UTC, datetime, timedelta

import pytest

from include.data import feed, layout
from include.projects import get_project
from include.settings import get_settings

FLIGHTS = get_project("flights")
PLANES, WEATHER = FLIGHTS.source("planes"), FLIGHTS.source("weather")
SMALL = FLIGHTS.model_copy(update={"sources": (PLANES, WEATHER)})
SINCE, NOON = datetime(2012, 12, 30, tzinfo=UTC), datetime(2013, 1, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.delenv("AIRLOOP_DATA_ROOT", raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def landed(source):
    return {path.name: path.read_bytes() for path in layout.landing(SMALL, source).iterdir()}


def test_each_file_lands_in_the_folder_of_its_source():
    assert feed.drop(SMALL, since=SINCE, until=NOON) == 3
    assert set(landed(PLANES)) == {"2012-12-31.csv"}
    assert set(landed(WEATHER)) == {"2013-01-01.json", "2013-01-02-02T1200.json"}
    published = FLIGHTS.module("feed").files(WEATHER, since=SINCE, until=NOON)
    assert landed(WEATHER) == dict(published)


def test_the_same_call_writes_the_same_bytes():
    feed.drop(SMALL, since=SINCE, until=NOON)
    before = landed(WEATHER)
    feed.drop(SMALL, since=SINCE, until=NOON)
    assert landed(WEATHER) == before


def test_a_bad_file_is_written_beside_the_good_ones():
    feed.drop(SMALL, since=SINCE, until=NOON)
    before = set(landed(WEATHER))
    path = feed.drop_bad(SMALL, "truncated_json", since=SINCE, until=NOON)
    assert set(landed(WEATHER)) - before == {path.name} == {"bad-truncated_json.json"}


@pytest.mark.parametrize(
    ("kind", "since", "message"),
    [
        pytest.param("odd", SINCE, "no bad file of kind 'odd'; there is missing_column, ", id="an unknown kind"),
        pytest.param("truncated_json", NOON - DAY / 1000, "no file to spoil", id="nothing was published"),
    ],
)
def test_a_bad_file_that_cannot_be_made_is_an_error_and_nothing_lands(kind, since, message):
    with pytest.raises(ValueError, match=message):
        feed.drop_bad(SMALL, kind, since=since, until=NOON - DAY / 2000)
    assert not layout.landing(SMALL, WEATHER).exists()
