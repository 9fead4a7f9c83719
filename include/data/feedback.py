"""Labels of served predictions: select those that a run may process, and find their predictions.

A label names a prediction, or an entity and the time when the prediction was requested. In the
second case, it belongs to the prediction that serving answered nearest to that time (at most
``match_tolerance`` away). The request must have the same join keys, and the same value of every
request feature that the label names. Ingest writes that prediction's id into the row, so the
table's key holds for both kinds: a second label of one prediction repeats the first, or contradicts
it.
"""

import io
import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from include.data import layout, prediction_log, reading
from include.data.landing import LandedFile
from include.data.prediction_log import SETTLED, SKEW
from include.data.printable import brief
from include.data.reading import FileRefusedError
from include.data.rules import Fault
from include.data.tables import ARROW
from include.projects.base import Project, Source

LAST = datetime.max.replace(tzinfo=UTC)


def due(
    source: Source, files: list[LandedFile], cutoff: datetime, now: datetime | None = None
) -> tuple[list[LandedFile], dict[str, str]]:
    """Return the files that this run may process, and the files that wait: name -> reason.

    The files to process are in the order in which they were received. Labels arrive at any time,
    also after a run has chosen its cutoff. Labels known after the cutoff are not from the future.
    They belong to a later run. Labels received within the last seconds may belong to a prediction
    that serving has not logged yet.

    Args:
        now: the wall clock, which serving uses to timestamp what it receives.
    """
    settled = pd.Timestamp((now := now or datetime.now(UTC)) - SETTLED)
    ready: list[tuple[datetime, str, LandedFile]] = []
    waiting = {}
    for file in files:
        try:
            rows = reading.read(source, file.name, file.content).typed
        except FileRefusedError:  # there is nothing to wait for
            ready.append((LAST, file.name, file))
            continue
        known, received = rows["known_at"], rows["received_at"]
        if (received > settled).any():
            waiting[file.name] = (
                f"it was received at {received.max():%Y-%m-%d %H:%M:%S}, and it is only {now:%H:%M:%S} now"
            )
        elif (later := (known > pd.Timestamp(cutoff)) & (known <= received + SKEW)).any():
            waiting[file.name] = (
                f"its labels became known by {known[later].max():%Y-%m-%d %H:%M:%S}, and this run's cutoff is"
                f" {cutoff:%Y-%m-%d %H:%M:%S}"
            )
        else:
            ready.append((LAST if received.isna().all() else received.min().to_pydatetime(), file.name, file))
    return [file for _, _, file in sorted(ready, key=lambda one: one[:2])], waiting


@dataclass(frozen=True)
class Rights:
    """The permissions of the senders of rows, for all rows of several files.

    Attributes:
        corrects: bool [rows]. The row replaces the label that was sent before.
        labels_of: for each row the callers whose predictions it may label. None: all callers.
    """

    corrects: np.ndarray
    labels_of: list[frozenset[str] | None]


def rights(source: Source, files: list[LandedFile], lengths: list[int]) -> Rights:
    """Return the sender's permissions, which serving writes into the metadata of each file.

    A file without them (of an older serving) cannot correct anything.
    """
    permissions = [_rights_of(file.content) if source.predictions else (False, None) for file in files]
    corrects = np.repeat(np.array([corrects for corrects, _ in permissions], dtype=bool), lengths)
    return Rights(
        corrects,
        [labels_of for (_, labels_of), length in zip(permissions, lengths, strict=True) for _ in range(length)],
    )


def _rights_of(content: bytes) -> tuple[bool, frozenset[str] | None]:
    try:
        metadata = pq.read_schema(io.BytesIO(content)).metadata or {}
        corrects, labels_of = (
            json.loads(metadata.get(b"corrects", b"false")),
            json.loads(metadata.get(b"labels_of", b"null")),
        )
    except (pa.ArrowException, ValueError, OSError, RecursionError):
        return False, frozenset()
    return corrects is True, (
        None if labels_of is None else frozenset(map(str, labels_of)) if isinstance(labels_of, list) else frozenset()
    )


@dataclass
class _Thing:
    """The entity and time that a label names, and the matching predictions."""

    keys: tuple[Any, ...]  # the join keys' values, in the project's order
    entity: dict[str, Any]
    at: int  # microseconds since 1970
    off: int | None = None
    ids: set[str] = field(default_factory=set)

    def offer(self, prediction: str, key: dict[str, Any], at: int, tolerance: int) -> None:
        off = abs(at - self.at)
        if (
            off > tolerance
            or (self.off is not None and off > self.off)
            or any(_value(key.get(name)) != value for name, value in self.entity.items())
        ):
            return
        if off != self.off:
            self.off, self.ids = off, set()
        self.ids.add(prediction)


def find_predictions(project: Project, source: Source, rows: pd.DataFrame, rights: Rights | None = None) -> list[Fault]:
    """Write its prediction's id into each row that names an entity and a time. Return bad rows.

    Bad rows cannot be a label of any prediction.

    Args:
        rows: the source's columns, typed. ``prediction_id`` is changed, to an empty one if no
            prediction is found.
        rights: the permissions of the rows' senders. None: they may label all predictions.
    """
    policy = source.predictions
    if policy is None or rows["received_at"].isna().all():
        return []
    given = rows["prediction_id"].tolist()
    things = [
        None if one else _thing(project, *named)
        for one, *named in zip(given, rows["entity"], rows["event_timestamp"], strict=True)
    ]
    since = rows["received_at"].min().to_pydatetime() - policy.lookback
    there = _search(
        project, {one for one in given if one}, [thing for thing in things if thing], policy.match_tolerance, since
    )

    matches = [
        ({one} & there.keys()) if one else thing.ids if thing else set()
        for one, thing in zip(given, things, strict=True)
    ]
    labels_of = rights.labels_of if rights is not None else [None] * len(matches)
    others = np.array(
        [
            of is not None and any(there[one] not in of for one in ids)
            for of, ids in zip(labels_of, matches, strict=True)
        ]
    )
    rows["prediction_id"] = [
        one or (min(ids) if len(ids) == 1 else "") for one, ids in zip(given, matches, strict=True)
    ]
    count = np.array([len(ids) for ids in matches])
    early = (rows["known_at"] > rows["received_at"] + SKEW).to_numpy(dtype=bool, na_value=False)
    what = (
        ("from_the_future", "'known_at' is after the label was received", early),
        (
            "unknown_prediction",
            (
                f"they are of no prediction since {since:%Y-%m-%d %H:%M}, or of none within {policy.match_tolerance} of"
                " their time"
            ),
            count == 0,
        ),
        ("ambiguous_prediction", "several predictions are equally near to that time", count > 1),
        ("others_prediction", "they are of predictions of callers whose labels their sender may not write", others),
    )
    return [
        (rule, f"{message}, e.g. {_text(rows.assign(prediction_id=given)[mask].iloc[0])}", mask)
        for rule, message, mask in what
        if mask.any()
    ]


def _thing(project: Project, entity: Any, time: Any) -> _Thing | None:
    """Return the entity and time that a row names, or None if it names nothing searchable."""
    try:
        parsed_entity, at = json.loads(entity), pd.to_datetime(time, utc=True, format="ISO8601")
    except (TypeError, ValueError, RecursionError):
        return None
    if (
        not isinstance(parsed_entity, dict)
        or pd.isna(at)
        or not all(isinstance(value, str | int | float | None) for value in parsed_entity.values())
    ):
        return None
    return _Thing(
        _keys(project, parsed_entity), {name: _value(value) for name, value in parsed_entity.items()}, at.value // 1000
    )


def _search(
    project: Project, ids: set[str], things: list[_Thing], tolerance: timedelta, since: datetime
) -> dict[str, str]:
    """Return prediction id -> caller for the ids and the entities' predictions found in the log.

    Each entity is offered the predictions around its time. The newest files are read first, and no
    further back than needed.
    """
    callers: dict[str, str] = {}
    missing, reach = set(ids), int(tolerance.total_seconds() * 1e6)
    of_keys: dict[tuple[Any, ...], list[_Thing]] = defaultdict(list)
    for thing in things:
        of_keys[thing.keys].append(thing)
    times = np.sort(np.array([thing.at for thing in things], dtype="int64"))
    needed = (times[0] - reach) / 1e6 - SKEW.total_seconds() if things else np.inf
    for written, content in prediction_log.newest_first(layout.prediction_log(project), since=since):
        if not missing and written is not None and written.timestamp() < needed:
            break
        rows = prediction_log.table(content, ["prediction_id", "predicted_at", "key", "caller"])
        if rows is None:
            continue
        rows = rows.filter(pc.greater_equal(rows["predicted_at"], pa.scalar(since, ARROW["timestamp"])))
        if missing:
            hits = rows.select(["prediction_id", "caller"]).filter(
                pc.is_in(rows["prediction_id"], value_set=pa.array(sorted(missing), pa.string()))
            )
            callers |= dict(zip(hits["prediction_id"].to_pylist(), hits["caller"].to_pylist(), strict=True))
            missing -= callers.keys()
        if things:
            at = rows["predicted_at"].cast(ARROW["timestamp"]).cast(pa.int64()).to_numpy()
            near = np.searchsorted(times, at - reach, "left") < np.searchsorted(times, at + reach, "right")
            for row, moment in zip(rows.filter(pa.array(near)).to_pylist(), at[near].tolist(), strict=True):
                key = json.loads(row["key"])
                for thing in of_keys.get(_keys(project, key), ()):
                    thing.offer(row["prediction_id"], key, moment, reach)
                    callers[row["prediction_id"]] = row["caller"]
    return callers


def _keys(project: Project, values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(_value(values.get(name)) for name in project.entities)


def _value(value: Any) -> tuple[bool, Any]:
    """Return a value in a comparable form.

    JSON's 7 and 7.0 are the same number. ``true`` is not a number, although Python treats it as 1.
    """
    return isinstance(value, bool), value


def _text(row: pd.Series) -> str:
    return (
        f"prediction_id={brief(row['prediction_id'])}"
        if row["prediction_id"]
        else f"entity {brief(row['entity'])} at {brief(row['event_timestamp'])}"
    )
