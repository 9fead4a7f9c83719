"""Decide when a task is tried again.

After an error that every try would repeat: never. After another error of the task itself: soon, and
few times. While a store is unavailable: for several minutes.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from include.outages import outage_of, will_fail_again

# After an error of the task itself. Every task is safe to run again.
RETRIES = 2
# In addition, with increasing pauses: four minutes in total, enough for a database to restart or
# fail over.
OUTAGES = 6
PAUSES = (5, 10, 20, 40, 60, 60, 60)  # In seconds.


class BackendOutageRetryPolicy(RetryPolicy):
    """Give a task ``RETRIES`` retries, and ``OUTAGES`` more while a store is unavailable.

    The stores are Postgres, Redis, the object store and MLflow. An error that the same code on the
    same data raises again (``include.outages.will_fail_again``) ends the task immediately.

    The policy does not apply to a task that was killed from outside: Airflow retries it as often as
    the task's ``retries`` say.

    Args:
        own: Number of retries after an error of the task itself. None: use the task's ``retries``,
            or let the task decide.
        retries: The task's ``retries``, used to exclude tries from before the task was cleared.
    """

    def __init__(self, own: int | None = RETRIES, retries: int = RETRIES + OUTAGES):
        self.own, self.retries = own, retries

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        tries = max(1, try_number - max(0, max_tries - self.retries))
        if outage := outage_of(exception):
            return RetryDecision.retry(
                timedelta(seconds=PAUSES[min(tries, len(PAUSES)) - 1]), f"a store is away ({outage})"
            )
        if will_fail_again(exception):
            return RetryDecision.fail(f"another try would fail in the same way ({type(exception).__name__})")
        if self.own is not None and tries > self.own:
            return RetryDecision.fail(f"failed {tries} times, and this time no store was unavailable")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        return {"type": "backend_outage", "own": self.own, "retries": self.retries}
