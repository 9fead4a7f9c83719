"""Old history that is loaded at today's cutoff is reported with a fix, and recent data is not."""

import logging

import pandas as pd
import pyarrow as pa
import pytest

from include import ledger
from include.data import age, layout, tables
from include.ledger import moment
from include.projects import get_project
from include.settings import get_settings

FLIGHTS = get_project("flights")


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Create tables whose newest row was known on 31 December 2013."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    for name in ("AIRLOOP_DATA_ROOT", "AIRLOOP_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    for sequence, time in enumerate(("2013-05-01T00:00:00Z", "2013-12-31T12:30:00Z"), start=1):
        source = FLIGHTS.source("planes")
        rows = pd.DataFrame({name: [None] for name in source.columns}).assign(
            tailnum="N1", published_at=pd.Timestamp(time)
        )
        made = pa.Table.from_pandas(rows, schema=tables.arrow_schema(source.columns), preserve_index=False)
        tables.append(layout.table(FLIGHTS, "planes"), made, writer="test", sequence=sequence)
    yield
    get_settings.cache_clear()


def test_the_newest_row_is_known(ended):
    assert age.newest_row(FLIGHTS) == moment("2013-12-31T12:30:00Z")


def test_a_cutoff_seven_years_later_is_warned_of_with_what_to_do(ended):
    message = age.warning(FLIGHTS, "2020-12-31T00:00:00Z")
    assert "known at 2013-12-31T12:30:00Z, 2556 days before the cutoff 2020-12-31T00:00:00Z" in message
    assert (
        "airloop run flights ingest --cutoff 2013-12-31T12:30:01`" in message
        and "airloop rewind flights --to 2013-12-31T12:30:01 --reason" in message
    )


@pytest.mark.parametrize("cutoff", ["2014-01-02T00:00:00Z", "2013-06-01T00:00:00Z"])
def test_recent_data_and_an_earlier_cutoff_are_not(ended, cutoff):
    assert age.warning(FLIGHTS, cutoff) is None


def test_people_are_told_once_for_each_end(ended):
    for cutoff in ("2020-12-31T00:00:00Z", "2021-01-01T00:00:00Z"):
        assert age.warn(FLIGHTS, cutoff)
    assert len(ledger.notices("flights")) == 1


def test_build_features_says_it_in_its_log(ended, monkeypatch, caplog):
    from include.features import build, store
    from include.projects.flights import features
    from tests.homes import forget_home

    forget_home()
    empty = {
        view.name: pd.DataFrame(
            {
                c: pd.Series(dtype="datetime64[us, UTC]" if c == "event_timestamp" else "object")
                for c in (*view.join_keys, "event_timestamp", *(f.name for f in view.features))
            }
        )
        for view in store.feature_views(FLIGHTS)
    }
    monkeypatch.setattr(features, "compute", lambda known, *, since, cutoff: empty)
    with caplog.at_level(logging.WARNING):
        build.compute(FLIGHTS, "2020-12-31T00:00:00Z")
    assert "features after it have no values" in caplog.text
    forget_home()
