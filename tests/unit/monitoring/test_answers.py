"""Reading serving's log: the columns follow the schema, and old files can be read.

Rows outside of the requested time are left out.
"""

import json
from datetime import timedelta

import pyarrow.parquet as pq

from include.data import layout
from include.monitoring.answers import COLUMNS, answers, entity_of, shadowed
from include.projects import get_project
from include.settings import REPOSITORY
from tests.unit.rollout.harness import SCHEMA, START, answered

FLIGHTS = get_project("flights")


def test_what_is_read_stands_in_the_schema_by_which_serving_writes():
    known = {
        column["name"]: column["type"]
        for column in json.loads((REPOSITORY / "serving" / "prediction_log" / "schema.json").read_text())["columns"]
    }
    assert set(COLUMNS) <= known.keys()
    assert {name: known[name] for name in SCHEMA.names} == {
        field.name: str(field.type).replace("tz=", "") for field in SCHEMA
    }


def test_only_what_was_answered_in_the_time_is_read_and_shadows_lie_apart(own_store):
    assert list(answers(FLIGHTS, since=START, until=START + timedelta(hours=1)).columns) == list(COLUMNS)
    answered(FLIGHTS, "champion", "1", 5, START)
    answered(FLIGHTS, "champion", "1", 7, START + timedelta(minutes=10))
    answered(FLIGHTS, "next", "2", 3, START + timedelta(minutes=10), shadow=True)
    assert len(answers(FLIGHTS, since=START - timedelta(minutes=1), until=START + timedelta(minutes=20))) == 12
    assert len(answers(FLIGHTS, since=START, until=START + timedelta(minutes=20))) == 7
    assert len(answers(FLIGHTS, since=START, until=START + timedelta(minutes=5))) == 0
    assert set(shadowed(FLIGHTS, since=START, until=START + timedelta(minutes=20))["arm"]) == {"next"}


def test_files_of_before_there_was_failed_arm_are_read(own_store):
    answered(FLIGHTS, "champion", "1", 5, START)
    (file,) = layout.prediction_log(FLIGHTS).glob("*.parquet")
    pq.write_table(pq.read_table(str(file)).drop_columns(["failed_arm"]), str(file))
    answered(FLIGHTS, "canary", "2", 5, START)
    assert set(answers(FLIGHTS, since=START - timedelta(minutes=1), until=START)["failed_arm"]) == {""}


def test_an_entity_is_its_join_keys_and_without_them_the_whole():
    key = {name: name.upper() for name in FLIGHTS.entities}
    assert entity_of(FLIGHTS, json.dumps(key | {"hour": 1})) == entity_of(FLIGHTS, json.dumps(key | {"hour": 2}))
    assert entity_of(FLIGHTS, '{"hour": 1}') != entity_of(FLIGHTS, '{"hour": 2}')
