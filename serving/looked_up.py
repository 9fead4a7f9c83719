"""What the online store holds for one instance."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Values by feature (None: no value), event time by view (None: no row)."""

    values: dict[str, Any]
    times: dict[str, datetime | None]
