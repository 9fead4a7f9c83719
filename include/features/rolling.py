"""Rolling statistics by entity over known events, for the projects' ``features.py``."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import numpy as np
import pandas as pd


def every(step: timedelta, *, after: datetime, until: datetime) -> pd.DatetimeIndex:
    """Return every full step (UTC) in (after, until]. The times do not depend on the range."""
    first = pd.Timestamp(after).floor(step) + pd.Timedelta(step)
    return pd.date_range(first, pd.Timestamp(until), freq=pd.Timedelta(step), unit="us")


def rolling(
    events: pd.DataFrame,
    entity: str,
    times: pd.DatetimeIndex,
    features: Mapping[str, tuple[str | None, timedelta]],
    *,
    silent_after: timedelta,
) -> pd.DataFrame:
    """Return means and counts over the events that became known in (t - window, t].

    There is one row for each entity and time t.

    Args:
        events: the entity's column, ``known_at`` (UTC) and the columns to average, without missing
            values.
        entity: column to group by.
        times: ``event_timestamp`` of the rows to make.
        features: name -> (column to average, or None to count events; window).
        silent_after: an entity whose last event is longer ago than this gets no row. It must be
            longer than the longest window. Otherwise the online store keeps an outdated value.

    Returns:
        Columns entity, ``event_timestamp`` and the features (float64; a mean over no event is NaN),
            by entity and time.

    Raises:
        ValueError: ``silent_after`` is not longer than every window.
    """
    longest = max(window for _, window in features.values())
    if silent_after <= longest:
        raise ValueError(f"silent_after ({silent_after}) must be longer than the longest window ({longest})")
    events = events.sort_values("known_at")
    at = _microseconds(times)
    empty = {
        entity: pd.Series(dtype="object"),
        "event_timestamp": times[:0],
        **{name: pd.Series(dtype="float64") for name in features},
    }
    frames = []
    for key, rows in events.groupby(entity, sort=True):
        known = _microseconds(rows["known_at"])
        end = np.searchsorted(known, at, side="right")
        values: dict[str, object] = {entity: np.full(len(at), key, dtype=object), "event_timestamp": times}
        for name, (column, window) in features.items():
            begin = _first_after(known, at, window)
            count = (end - begin).astype("float64")
            if column is None:
                values[name] = count
                continue
            total = np.concatenate([[0.0], rows[column].to_numpy(dtype="float64").cumsum()])
            with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as intended
                values[name] = (total[end] - total[begin]) / count
        frame = pd.DataFrame(values)[end > _first_after(known, at, silent_after)]
        if len(frame):
            frames.append(frame)
    return pd.concat(frames or [pd.DataFrame(empty)], ignore_index=True)


def _first_after(known: np.ndarray, at: np.ndarray, window: timedelta) -> np.ndarray:
    starts: np.ndarray = np.searchsorted(known, at - pd.Timedelta(window) // pd.Timedelta(microseconds=1), side="right")
    return starts


def _microseconds(times: pd.DatetimeIndex | pd.Series) -> np.ndarray:
    """Return microseconds since 1970, whatever the unit of the timestamps."""
    micros: np.ndarray = pd.DatetimeIndex(times).as_unit("us").asi8
    return micros
