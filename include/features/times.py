"""Normalize times from projects' functions to UTC and microseconds, for tables, Feast and Delta."""

import pandas as pd

from include.projects import file_name
from include.projects.base import Project


class NaiveTimeError(ValueError):
    """Raised when a column of a project's function has times without a time zone."""


def stored(project: Project, frame: pd.DataFrame, function: str) -> pd.DataFrame:
    """Return the frame with each column of times in UTC and microseconds.

    DuckDB and Delta cannot read pandas' nanoseconds.

    Args:
        function: function of the project's features.py that returned the frame, for the message.

    Raises:
        NaiveTimeError: a column does not have a time zone. The message names it.
    """
    changed = {}
    for column in frame.columns:
        dtype = frame[column].dtype
        if isinstance(dtype, pd.DatetimeTZDtype):
            changed[column] = frame[column].dt.tz_convert("UTC").dt.as_unit("us")
        elif pd.api.types.is_datetime64_dtype(dtype):
            raise NaiveTimeError(
                f"{file_name(project.name, 'features')}: {function} gives column '{column}' as {dtype}, which has no"
                " time zone: declare it, as with .dt.tz_localize('Europe/Berlin'), or pd.to_datetime(..., utc=True)"
            )
    return frame.assign(**changed)
