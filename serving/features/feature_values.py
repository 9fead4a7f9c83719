"""Define the result of a lookup for one instance."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class FeatureValues:
    """The values by feature (None: no value) and the event times by view (None: no row)."""

    values: dict[str, Any]
    times: dict[str, datetime | None]
