"""Labels by prediction id and by entity and time, through the real ingest.

Each label finds its prediction or goes to quarantine, and no prediction gets a second label.
"""

import hashlib
import json
from datetime import timedelta

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from include.data import feedback, landing, layout, prediction_log, tables
from include.data.ingest import ingest_source
from include.data.prediction_log import SETTLED
from include.ledger import iso, moment
from include.projects.base import Source
from include.projects.feedback import COLUMNS
from include.projects.flights import expectations
from include.projects.flights import project as flights
from include.projects.rollout import Analysis, LabelPolicy, RolloutPolicy
from include.settings import get_settings
from serving.http.feedback import SCHEMA
from tests.unit.rollout import harness

pytestmark = pytest.mark.slow

NOON = moment("2026-01-01T12:00:00Z")
# When labels are received, and ingest runs.
LATER = NOON + timedelta(hours=6)
SOURCE = Source.feedback()
PROJECT = flights.model_copy(update={"sources": (SOURCE,), "entities": ("shop", "customer")})
ASKED = {"shop": "a", "customer": 7, "hour": 12}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setitem(
        expectations._SOURCES, "feedback", lambda: [gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[0, 1])]
    )
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def served(*rows: tuple[str, dict, float], caller: str = "-") -> None:
    """Write predictions into one file of the log.

    Each has a number, a key, and the seconds after noon at which it was answered.
    """
    times = [NOON + timedelta(seconds=seconds) for _, _, seconds in rows]
    columns = {
        "prediction_id": [name(one) for one, _, _ in rows],
        "predicted_at": times,
        "key": [json.dumps(key) for _, key, _ in rows],
        **{column: ["x"] * len(rows) for column in ("model_version", "arm", "failed_arm")},
        **dict.fromkeys(("prediction", "latency_ms"), [0.5] * len(rows)),
        "caller": [caller] * len(rows),
    }
    folder = layout.prediction_log(PROJECT)
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{max(times) + timedelta(seconds=1):%Y%m%dT%H%M%S.%fZ}-host-1-{next(harness.NUMBERS)}.parquet"
    pq.write_table(pa.table(columns, schema=harness.SCHEMA), str(folder / file))


def name(number: str) -> str:
    return number.rjust(32, "0")


def by_id(number: str, label: float = 1, **more) -> dict:
    return {"prediction_id": name(number), "label": label, **more}


def by_entity(entity: dict, seconds: float = 0, label: float = 1, **more) -> dict:
    return {
        "entity": json.dumps(entity),
        "event_timestamp": iso(NOON + timedelta(seconds=seconds)),
        "label": label,
        **more,
    }


def landed(*labels: dict, file: str | None = None, received=LATER, **rights) -> str:
    """Write one request's file to the landing zone, as serving does."""
    rows = []
    for label in labels:
        unnamed = {
            "prediction_id": "",
            "entity": "",
            "event_timestamp": "",
            "known_at": received,
            "received_at": received,
            "sent_by": "shop-app",
        }
        rows.append(
            {"label_id": hashlib.sha256(repr(sorted(label.items())).encode()).hexdigest()[:32], **unnamed, **label}
        )
    file = file or f"feedback-{next(harness.NUMBERS):032x}.parquet"
    folder = layout.landing(PROJECT, SOURCE)
    folder.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, **{name: json.dumps(value) for name, value in rights.items()}})
    pq.write_table(
        pa.Table.from_pylist([row | {"label": float(row["label"])} for row in rows], schema=schema), str(folder / file)
    )
    return file


def ingest(cutoff=LATER + timedelta(hours=1), source=SOURCE) -> tuple[dict[str, float], list[str]]:
    """Run ingest. Return prediction -> label, and the sorted rules of the quarantined rows.

    Assert that no label is lost.
    """
    done = ingest_source(PROJECT.model_copy(update={"sources": (source,)}), source, iso(cutoff))
    assert done["rows"] == done["table"] + done["quarantine"] + done["refused"]
    table = tables.open_table(layout.table(PROJECT, "feedback"))
    bad = tables.open_table(layout.table(PROJECT, "quarantine"))
    rows = table.to_pyarrow_table().to_pylist() if table else []
    assert len({row["prediction_id"] for row in rows}) == len(rows)
    return {row["prediction_id"].lstrip("0"): row["label"] for row in rows}, (
        sorted(bad.to_pyarrow_table()["rule"].to_pylist()) if bad else []
    )


def test_the_source_takes_what_serving_writes():
    assert {field.name: str(field.type) for field in SCHEMA} == {
        name: {"string": "string", "float64": "double", "timestamp": "timestamp[us, tz=UTC]"}[dtype]
        for name, dtype in COLUMNS.items()
    }


def test_labels_find_their_predictions_whichever_way_they_name_them():
    served(("1", ASKED, 0), ("2", ASKED | {"customer": 8}, 0))
    served(("3", ASKED, 3600), ("4", {"shop": None, "customer": 9}, 0))
    landed(
        by_id("1", 0),
        by_entity({"customer": 8.0, "shop": "a"}, 1),
        by_entity({"shop": "a", "customer": 7}, 3600, 0),
        by_entity({"customer": 9}),
    )
    assert ingest() == ({"1": 0.0, "2": 1.0, "3": 0.0, "4": 1.0}, [])


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        pytest.param(by_entity({"shop": "a", "customer": 7}, 14), "1", id="the nearest, before it"),
        pytest.param(by_entity({"shop": "a", "customer": 7}, 16), "2", id="the nearest, after it"),
        pytest.param(by_entity({"shop": "a", "customer": 7}, -60), "1", id="as far off as is allowed"),
        pytest.param(
            by_entity({"shop": "a", "customer": 7}, -60.001), "unknown_prediction", id="further off than is allowed"
        ),
        pytest.param(by_entity({"shop": "a", "customer": 7}, 15), "ambiguous_prediction", id="two are equally near"),
        pytest.param(by_entity(ASKED | {"hour": 13}, 15), "2", id="request features tell one from the other"),
        pytest.param(by_entity(ASKED | {"minute": 0}), "unknown_prediction", id="that was not asked with it"),
        pytest.param(by_entity({"shop": "a"}), "unknown_prediction", id="not all join keys"),
        pytest.param(by_entity({"shop": "a", "customer": "7"}), "unknown_prediction", id="a text is no number"),
        pytest.param(by_entity({"shop": "a", "customer": 1}, 1000), "unknown_prediction", id="true is no number"),
        pytest.param(by_entity({"shop": "a", "customer": [7]}), "unknown_prediction", id="a list is no entity"),
        pytest.param(
            by_entity({"shop": "a", "customer": 7}) | {"event_timestamp": "9999-12-31T23:59:59Z"},
            "unknown_prediction",
            id="a time beyond pandas'",
        ),
        pytest.param(
            by_entity({"shop": "a", "customer": 7}) | {"event_timestamp": "noon"}, "unknown_prediction", id="no time"
        ),
        pytest.param(
            by_id("1", known_at=moment("9999-12-31T23:59:59Z")), "from_the_future", id="known in a time beyond pandas'"
        ),
        pytest.param(by_id("") | {"prediction_id": ""}, "unknown_prediction", id="it names nothing"),
        pytest.param(by_id("9"), "unknown_prediction", id="a made-up id"),
    ],
)
def test_which_prediction_it_is(label, wanted):
    served(("1", ASKED, 0), ("2", ASKED | {"hour": 13}, 30), ("3", {"shop": "a", "customer": True}, 1000))
    landed(label)
    assert ingest() == (({}, [wanted]) if "_" in wanted else ({wanted: 1.0}, []))


def test_a_label_other_than_0_and_1_is_none_of_a_binary_project_whatever_its_expectations_say(monkeypatch):
    monkeypatch.setitem(expectations._SOURCES, "feedback", list)
    served(("1", ASKED, 0), ("2", ASKED, 30))
    landed(by_id("1", 2), by_id("2", 0))
    assert ingest() == ({"2": 0.0}, ["wrong_label"])


def test_a_request_that_was_asked_twice_at_once_is_told_by_id_only():
    served(("1", ASKED, 0), ("2", ASKED, 0))
    # A label with an ambiguous prediction does not contradict any other label.
    landed(by_entity(ASKED), by_id("1", 0))
    assert ingest() == ({"1": 0.0}, ["ambiguous_prediction"])


def test_a_label_that_is_too_far_off_does_not_profit_from_one_that_is_near():
    served(("1", ASKED, 0), ("2", ASKED | {"customer": 8}, 0))
    landed(by_entity({"shop": "a", "customer": 7}, 90), by_entity({"shop": "a", "customer": 8}, 30))
    assert ingest() == ({"2": 1.0}, ["unknown_prediction"])


ONE, OTHER = (
    [by_id("1", 1), by_entity({"shop": "a", "customer": 7}, 1, 1)],
    [by_id("1", 0), by_entity({"customer": 7, "shop": "a"}, 2, 0)],
)


@pytest.mark.parametrize("first", ONE, ids=["by id", "by entity"])
@pytest.mark.parametrize("second", OTHER, ids=["then by id", "then by entity"])
@pytest.mark.parametrize("where", ["one request", "one run", "two runs"])
def test_one_prediction_never_gets_two_labels(first, second, where):
    served(("1", ASKED, 0))
    if where == "one request":
        landed(first, second)
        assert ingest() == ({}, ["contradicting_keys"] * 2)  # it is unknown which is right
        return
    landed(first, file="feedback-f.parquet")
    if where == "two runs":
        assert ingest() == ({"1": 1.0}, [])
    # The file names are hashes. The order comes from the files' content.
    landed(second, file="feedback-0.parquet", received=LATER + timedelta(minutes=1))
    assert ingest() == ({"1": 1.0}, ["contradicts_earlier"])


@pytest.mark.parametrize("where", ["one request", "one run", "two runs"])
def test_who_says_the_same_contradicts_nobody(where):
    served(("1", ASKED, 0))
    first, second = by_id("1"), by_entity({"shop": "a", "customer": 7}, 0, sent_by="other-app")
    if where == "one request":
        landed(first, second)
    else:
        landed(first)
        if where == "two runs":
            ingest()
        landed(second, received=LATER + timedelta(minutes=1))
    assert ingest() == ({"1": 1.0}, ["duplicated_keys" if where == "one request" else "repeats_earlier"])


def test_impossible_labels_go_to_quarantine_and_the_good_ones_of_the_same_request_stay():
    served(*((str(number), ASKED | {"customer": number}, 0) for number in range(1, 5)))
    landed(by_id("1"), by_id("2", 2), by_id("3", 0.5), by_id("4", known_at=LATER + timedelta(days=1)), by_id("5"))
    assert ingest(LATER + timedelta(days=2)) == (
        {"1": 1.0},
        ["column_values_to_be_in_set(label)"] * 2 + ["from_the_future", "unknown_prediction"],
    )


def test_a_bad_label_is_no_label_so_the_right_one_may_come():
    served(("1", ASKED, 0))
    landed(by_id("1", 7))
    assert ingest() == ({}, ["column_values_to_be_in_set(label)"])
    landed(by_id("1", 0), received=LATER + timedelta(minutes=1))
    assert ingest()[0] == {"1": 0.0}


def test_what_came_after_the_cutoff_or_just_now_waits_for_the_next_run():
    served(("1", ASKED, 0), ("2", ASKED | {"customer": 8}, 0), ("3", ASKED | {"customer": 9}, 0))
    early = landed(by_id("1"))
    after = landed(by_id("2"), received=LATER + timedelta(minutes=5))
    # One clock: it was known by the cutoff.
    replayed = landed(by_id("3", known_at=moment("2013-01-01T00:00:00Z")), received=LATER + timedelta(minutes=5))
    cutoff = LATER + timedelta(minutes=1)

    def due(now):
        files, waiting = feedback.due(SOURCE, landing.new_files(PROJECT, SOURCE), cutoff, now)
        return [[file.name for file in files], list(waiting)]

    assert due(LATER + SETTLED / 2) == [[], [early, after, replayed]]
    assert due(LATER + SETTLED) == [[early], [after, replayed]]
    assert due(LATER + timedelta(hours=1)) == [[early, replayed], [after]]
    _, why = feedback.due(SOURCE, landing.new_files(PROJECT, SOURCE), cutoff)
    assert why == {
        after: (
            f"its labels became known by {LATER + timedelta(minutes=5):%Y-%m-%d %H:%M:%S}, and this run's cutoff is"
            f" {cutoff:%Y-%m-%d %H:%M:%S}"
        )
    }
    assert ingest(cutoff) == ({"1": 1.0, "3": 1.0}, [])
    assert ingest(LATER + timedelta(minutes=5)) == ({"1": 1.0, "2": 1.0, "3": 1.0}, [])


def test_a_file_that_is_none_waits_for_nothing():
    (folder := layout.landing(PROJECT, SOURCE)).mkdir(parents=True)
    (folder / "feedback-1.parquet").write_bytes(b"cut off")
    (folder / "feedback-2.csv").write_text("prediction_id,label\n1,1\n")
    done = ingest_source(PROJECT, SOURCE, iso(LATER))
    assert (done["files"], done["rows"], done["refused"], done["refused_files"]) == (
        2,
        1,
        1,
        ["feedback-1.parquet", "feedback-2.csv"],
    )


def test_the_log_is_read_no_further_back_than_is_needed(monkeypatch):
    for day in range(40):
        served((str(day + 1), ASKED | {"customer": day}, -day * 86_400))
    read = []
    real = prediction_log.table
    monkeypatch.setattr(prediction_log, "table", lambda *args: read.append(1) or real(*args))

    def files_read(*labels) -> int:
        read.clear()
        rows = pd.DataFrame(
            [
                {
                    "prediction_id": "",
                    "entity": "",
                    "event_timestamp": "",
                    "known_at": LATER,
                    "received_at": LATER,
                    **label,
                }
                for label in labels
            ]
        )
        faults = feedback.find_predictions(PROJECT, SOURCE, rows)
        assert [rule for rule, _, _ in faults] == (
            ["unknown_prediction"] if by_id("41") in labels or by_id("40") in labels else []
        )
        return len(read)

    assert files_read(by_id("1")) == 1
    assert files_read(by_id("3")) == 3
    assert files_read(by_entity({"shop": "a", "customer": 3}, -3 * 86_400)) == 4
    # An invented id, and an id that is older than `back`: only the files within `back` are read.
    assert files_read(by_id("41")) == files_read(by_id("40")) == 30


def test_a_project_says_how_near_and_how_far_back():
    served(("1", ASKED, 0), ("2", ASKED | {"customer": 8}, -86_400))
    landed(by_entity(ASKED, 599), by_id("2"))
    assert ingest(source=Source.feedback(match_tolerance=timedelta(minutes=10), lookback=timedelta(hours=12))) == (
        {"1": 1.0},
        ["unknown_prediction"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"key": ("label_id",)}, "its key must be prediction_id", id="a key by which contradictions are two labels"
        ),
        pytest.param(
            {"columns": {"prediction_id": "string", "known_at": "timestamp"}, "provenance": ()},
            "names column 'label_id'",
            id="columns are missing",
        ),
        pytest.param({"provenance": ("colour",)}, "names column 'colour'", id="no such column"),
    ],
)
def test_a_source_that_could_not_hold_labels_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Source.model_validate(SOURCE.model_dump() | change)


@pytest.mark.parametrize(
    "source",
    [
        SOURCE.model_copy(update={"key": ("label_id",)}),
        flights.source("actuals").model_copy(update={"name": "feedback"}),
    ],
)
def test_a_rollout_is_not_judged_by_labels_of_which_a_prediction_may_have_two(source):
    judged = {"rollout": RolloutPolicy(analysis=Analysis(labels=LabelPolicy()))}
    assert (
        flights.model_validate(flights.model_dump() | {"sources": [*flights.sources, SOURCE], **judged}).source(
            "feedback"
        )
        == SOURCE
    )
    with pytest.raises(ValidationError, match="not a source with the column label and the key prediction_id"):
        flights.model_validate(
            flights.model_dump()
            | {
                "sources": [*flights.sources, source.model_copy(update={"predictions": None})],
                **judged,
            }
        )


def test_an_authorized_caller_corrects_a_label_and_its_time():
    served(("1", ASKED, 0), ("2", ASKED | {"customer": 8}, 0), ("3", ASKED | {"customer": 9}, 0))
    landed(by_id("1", 0), by_id("2", 1))
    assert ingest() == ({"1": 0.0, "2": 1.0}, [])
    landed(by_id("1", 1))
    assert ingest() == ({"1": 0.0, "2": 1.0}, ["contradicts_earlier"])
    earlier = LATER - timedelta(minutes=10)
    landed(by_id("1", 1), by_id("2", 1, known_at=earlier), by_id("3", 0), corrects=True)
    before = tables.table_version(layout.table(PROJECT, "feedback"))
    assert ingest() == ({"1": 1.0, "2": 1.0, "3": 0.0}, ["contradicts_earlier"])
    table = tables.open_table(layout.table(PROJECT, "feedback"))
    known = {row["prediction_id"]: row["known_at"] for row in table.to_pyarrow_table().to_pylist()}
    assert known[name("2")] == earlier
    # The data of the training still exists under its version.
    table.load_as_version(before)
    assert {row["prediction_id"].lstrip("0"): row["label"] for row in table.to_pyarrow_table().to_pylist()} == {
        "1": 0.0,
        "2": 1.0,
    }


def test_corrections_of_one_run_count_in_their_order():
    served(("1", ASKED, 0), ("2", ASKED | {"customer": 8}, 0))
    landed(by_id("1", 0), by_id("2", 0), received=LATER)
    landed(by_id("1", 1), by_id("2", 0), received=LATER + timedelta(seconds=1), corrects=True)
    landed(by_id("1", 0), by_id("2", 1), received=LATER + timedelta(seconds=2), corrects=True)
    landed(by_id("2", 0), received=LATER + timedelta(seconds=3))
    assert ingest() == ({"1": 0.0, "2": 1.0}, ["corrected_again", "corrected_again", "repeats_earlier"])


@pytest.mark.parametrize("corrects", ["yes", 1, [True], None])
def test_only_true_corrects(corrects):
    served(("1", ASKED, 0))
    landed(by_id("1", 0))
    landed(by_id("1", 1), received=LATER + timedelta(seconds=1), corrects=corrects)
    assert ingest() == ({"1": 0.0}, ["contradicts_earlier"])


def test_a_sender_labels_the_predictions_of_its_callers_only():
    served(("1", ASKED, 0), caller="checkout")
    served(("2", ASKED | {"customer": 8}, 0), caller="website")
    served(("3", ASKED | {"customer": 9}, 0))
    labels = [by_id("1"), by_id("2"), by_id("3"), by_entity({"shop": "a", "customer": 8})]
    landed(*labels, labels_of=["checkout", "app"])
    assert ingest() == ({"1": 1.0}, ["others_prediction"] * 3)
    landed(*labels, labels_of=None)
    assert ingest()[0] == {"1": 1.0, "2": 1.0, "3": 1.0}
    landed(by_id("2"), labels_of="website")
    assert ingest()[1].count("others_prediction") == 4


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_file_of_the_log_that_lost_its_end_is_left_out(left, caplog):
    served(("1", ASKED, 0))
    served(("2", ASKED | {"customer": 8}, 5))
    *_, last = sorted(layout.prediction_log(PROJECT).iterdir())
    last.write_bytes(last.read_bytes()[:left])
    landed(by_id("1"), by_id("2"))
    assert ingest() == ({"1": 1.0}, ["unknown_prediction"])
    assert "cannot be read and is left out" in caplog.text
