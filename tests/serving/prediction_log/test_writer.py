"""Every answered prediction is logged, off the request path."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.prediction_log.files import microseconds
from serving.prediction_log.writer import SCHEMA_FILE, PredictionLog, arrow_schema
from tests.serving.harness import NAME, REPOSITORY
from tests.waiting import wait_for

ROW = {
    "prediction_id": "x", "project": NAME, "model_version": "3", "arm": "champion", "failed_arm": "",
    "predicted_at": datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC), "key": '{"shop": "a"}',
    "features": "{}", "feature_times": "{}", "prediction": 0.5, "caller": "checkout", "latency_ms": 1.5,
}  # fmt: skip


class Rows(list):
    """A log entry that consists of rows and equals the rows of a file."""

    @property
    def project(self) -> str:
        return self[0]["project"]

    @property
    def size(self) -> int:
        return sum(len(row["features"]) for row in self) + 100

    @staticmethod
    def columns(entries) -> dict[str, list]:
        every = [row for entry in entries for row in entry]
        return {name: [row[name] for row in every] for name in ROW} | {
            "predicted_at": [microseconds(row["predicted_at"]) for row in every]
        }


def rows(*names: str, project: str = NAME) -> Rows:
    return Rows({**ROW, "prediction_id": name, "project": project} for name in names)


def files(log: PredictionLog, project: str = NAME):
    return sorted((log.root / project / "prediction_log").glob("*"))


@pytest.fixture
def log(tmp_path):
    started = PredictionLog(tmp_path / "store", flush_seconds=0.1, capacity=10)
    started.start()
    yield started
    started.close(2)


def test_the_arrow_schema_is_that_of_the_schema_file():
    document = json.loads(SCHEMA_FILE.read_text())
    schema = arrow_schema()
    assert schema.names == [column["name"] for column in document["columns"]] == list(ROW)
    assert schema.metadata == {b"prediction_log_version": b"3"}
    assert schema.field("predicted_at").type == pa.timestamp("us", tz="UTC")
    assert all(column["description"] for column in document["columns"])


def test_rows_come_into_a_file_within_a_second_and_no_reader_sees_half_of_one(log, monkeypatch):
    close = pq.ParquetWriter.close
    begun = []

    def watched(writer):
        close(writer)
        begun.append([file.name for file in files(log)])  # complete, but not published yet

    monkeypatch.setattr(pq.ParquetWriter, "close", watched)
    log.append(rows("a", "b"))
    began = time.monotonic()
    (file,) = wait_for(lambda: [f for f in files(log) if f.suffix == ".parquet"], 5)
    assert time.monotonic() - began < 1
    assert pq.read_table(file).to_pylist() == rows("a", "b")
    assert files(log) == [file]
    assert [[name[0], name.rpartition(".")[2]] for (name,) in begun] == [[".", "partial"]]


def test_many_rows_are_written_in_small_row_groups_in_their_order(tmp_path):
    log = PredictionLog(tmp_path / "store", flush_seconds=0.3, capacity=1000)
    log.start()
    ids = [str(number) for number in range(1000)]
    for part in range(0, 1000, 10):
        log.append(rows(*ids[part : part + 10]))
    log.close()
    assert log.stats()["written"] == 1000
    tables = [pq.ParquetFile(file) for file in sorted(files(log))]
    assert [value for table in tables for value in table.read()["prediction_id"].to_pylist()] == ids
    groups = [
        table.metadata.row_group(number).num_rows for table in tables for number in range(table.metadata.num_row_groups)
    ]
    assert sum(groups) == 1000 and max(groups) <= 260


def test_writing_needs_no_pandas(tmp_path):
    """Writing needs no pandas.

    pyarrow imports pandas when it meets Python objects. This would take seconds at the first
    prediction of a process.
    """
    script = f"""
import sys
from pathlib import Path
from serving.prediction_log.writer import PredictionLog
from tests.serving.prediction_log.test_writer import rows
log = PredictionLog(Path({str(tmp_path)!r}))
log.start()
log.append(rows("a", "b"))
log.close()
assert log.stats()["written"] == 2 and "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
    (file,) = (tmp_path / NAME / "prediction_log").glob("*.parquet")
    assert pq.read_table(file).to_pylist() == rows("a", "b")


def test_texts_of_any_length_and_script(log):
    odd = rows("", "ü", "語" * 300, "a\0b")
    log.append(odd)
    log.close()
    assert pq.read_table(files(log)[0]).to_pylist() == odd


def test_projects_have_files_of_their_own(log):
    log.append(rows("a"))
    log.append(rows("b", project="others"))
    log.close()
    assert pq.read_table(files(log)[0]).num_rows == pq.read_table(files(log, "others")[0]).num_rows == 1


def test_closing_writes_what_waits(tmp_path):
    slow = PredictionLog(tmp_path, flush_seconds=30)
    slow.start()
    slow.append(rows("a"))
    slow.close()
    assert pq.read_table(files(slow)[0]).num_rows == 1
    slow.append(rows("b"))  # too late, which is reported
    assert slow.stats() == {"waiting": 0, "written": 1, "dropped": 1, "errors": 0, "last_error": None}


def test_a_disk_that_does_not_take_files_delays_nobody_is_counted_and_heals(log):
    log.root.mkdir()
    (log.root / NAME).write_text("in the way")
    began = time.perf_counter()
    log.append(rows("a", "b"))
    assert time.perf_counter() - began < 0.05
    wait_for(lambda: log.stats()["errors"] >= 1, 5)
    # Other projects do not wait for this one.
    log.append(rows("c", project="others"))
    wait_for(lambda: log.stats()["written"] == 1, 5)
    assert "NotADirectoryError" in log.stats()["last_error"] or "FileExistsError" in log.stats()["last_error"]
    (log.root / NAME).unlink()
    wait_for(lambda: log.stats()["written"] == 3, 5)
    assert log.stats()["last_error"] is None
    assert [row["prediction_id"] for row in pq.read_table(files(log)[0]).to_pylist()] == ["a", "b"]


def test_a_full_queue_drops_and_counts(tmp_path):
    full = PredictionLog(tmp_path, capacity=3)  # not started: no entry is removed
    full.append(rows("a", "b"))
    full.append(rows("c", "d"))
    full.append(rows("e"))
    assert (full.stats()["waiting"], full.stats()["dropped"]) == (3, 2)


def test_rows_that_fit_no_schema_are_dropped_and_stop_nothing(log):
    log.append(Rows([{**ROW, "prediction": "high"}]))
    wait_for(lambda: log.stats()["dropped"] == 1, 5)
    # At least until the next files are written.
    time.sleep(0.3)
    assert "high" in log.stats()["last_error"]
    assert log.stats()["waiting"] == 0
    log.append(rows("a"))
    wait_for(lambda: log.stats()["written"] == 1, 5)


def test_an_entry_of_nothing_stops_nothing(log):
    log.append(Rows())
    log.append(rows("a"))
    wait_for(lambda: log.stats()["written"] == 1, 5)


def test_file_names_of_two_processes_differ(log):
    log.append(rows("a"))
    (file,) = wait_for(lambda: [f for f in files(log) if f.suffix == ".parquet"], 5)
    assert f"-{os.getpid()}-0" in file.name
