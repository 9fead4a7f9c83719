"""Time format used everywhere: ISO 8601 in UTC with fixed width.

Such times sort correctly as text in every database and are readable in any tool.
"""

from datetime import UTC, datetime


def iso(moment: datetime | str) -> str:
    """Return a moment in the form ``2013-04-01T10:00:00Z``.

    Raises:
        ValueError: The moment does not have a time zone, or it is not a valid ISO 8601 time.
    """
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if parsed.tzinfo is None:
        raise ValueError(f"'{moment}' has no time zone; write e.g. 2013-04-01T10:00:00Z")
    return parsed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def utc_now() -> datetime:
    """Return the current time in UTC.

    Deadlines and leases are compared with it. Tests replace it.
    """
    return datetime.now(UTC)


def stamp() -> str:
    """Return the current time as text, for people who read a record."""
    return iso(utc_now())
