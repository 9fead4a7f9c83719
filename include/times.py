"""How times are written everywhere: ISO 8601 in UTC with fixed width, so that they sort as text in every database and read well in any tool."""

from datetime import UTC, datetime


def iso(moment: datetime | str) -> str:
    """A moment as ``2013-04-01T10:00:00Z``.

    Raises:
        ValueError: it has no time zone, or is no ISO 8601 time.
    """
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if parsed.tzinfo is None:
        raise ValueError(f"'{moment}' has no time zone; write e.g. 2013-04-01T10:00:00Z")
    return parsed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def utc_now() -> datetime:
    """The wall clock, in UTC. Deadlines and leases compare with it; tests replace it."""
    return datetime.now(UTC)


def stamp() -> str:
    """The wall clock as text, for people who read a record."""
    return iso(utc_now())
