"""Times as projects' functions give them, in the form that tables, Feast and Delta have: UTC and microseconds."""

import pandas as pd

from include.projects.base import Project


class NaiveTimeError(ValueError):
    """A column of a project's function has times without a time zone."""


def stored(project: Project, frame: pd.DataFrame, function: str) -> pd.DataFrame:
    """Return the frame with each column of times in UTC and microseconds: pandas' own nanoseconds can be read by neither DuckDB nor Delta.

    Args:
        function: of the project's features.py, which gave the frame; for the message.

    Raises:
        NaiveTimeError: a column has no time zone; the message names it.
    """
    changed = {}
    for column in frame.columns:
        dtype = frame[column].dtype
        if isinstance(dtype, pd.DatetimeTZDtype):
            changed[column] = frame[column].dt.tz_convert("UTC").dt.as_unit("us")
        elif pd.api.types.is_datetime64_dtype(dtype):
            raise NaiveTimeError(
                f"include/projects/{project.name}/features.py: {function} gives column '{column}' as {dtype}, which has no time zone: "
                f"declare it, as with .dt.tz_localize('Europe/Berlin'), or pd.to_datetime(..., utc=True)"
            )
    return frame.assign(**changed)
