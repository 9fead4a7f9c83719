"""The tasks of build_features: without data they fail, and after a later cutoff they skip."""

import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include.dag_kit.tasks import build_features
from include.data import layout, tables
from include.features.build import WRITER
from include.ledger import moment
from include.projects import get_project

EARLY, LATE = "2013-01-02T10:00:00Z", "2013-01-03T10:00:00Z"
FLIGHTS = get_project("flights")
pytestmark = pytest.mark.usefixtures("own_store")


def publish(cutoff):
    at = moment(cutoff)
    for view in FLIGHTS.feature_views:
        rows = pa.table({"event_timestamp": pa.array([at], pa.timestamp("us", tz="UTC"))})
        tables.append(layout.feature_table(FLIGHTS, view), rows, writer=WRITER, sequence=int(at.timestamp()))


def test_a_project_without_data_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="has no ingested data yet: .* run flights__ingest"):
        build_features.compute_features.function("flights", EARLY)


def test_a_run_for_an_earlier_cutoff_than_the_last_one_is_skipped():
    publish(LATE)
    with pytest.raises(AirflowSkipException, match="are published up to 2013-01-03T10:00:00Z already"):
        build_features.compute_features.function("flights", EARLY)


def test_a_second_run_for_the_last_cutoff_computes_nothing_and_is_not_skipped():
    publish(LATE)
    assert build_features.compute_features.function("flights", LATE) == dict.fromkeys(FLIGHTS.feature_views, 0)
    published = {view: tables.table_version(layout.feature_table(FLIGHTS, view)) for view in FLIGHTS.feature_views}
    assert build_features.publish_features.function("flights", LATE) == published
