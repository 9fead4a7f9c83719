"""When a task is tried again: never after an error that must come again, soon and seldom after another error of its own, for minutes while a store is away."""

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from include.outages import away, will_fail_again

RETRIES = 2  # after an error of its own; every task is safe to run again
OUTAGES = 6  # beside them, each a little later: four minutes in all, in which a database is started again or fails over
PAUSES = (5, 10, 20, 40, 60, 60, 60)  # seconds


class PatientWithStores(RetryPolicy):
    """Gives a task ``RETRIES`` retries, and ``OUTAGES`` more when Postgres, Redis, the object store or MLflow did not answer.

    An error that the same code on the same data raises again (``include.outages.will_fail_again``) ends the task at once.

    A task that was killed from outside is not asked: Airflow tries it again as often as the task's ``retries`` say.

    Args:
        own: tries again after an error of the task's own; None: as many as the task's ``retries``, or it decides by itself.
        retries: the task's, by which tries are counted that came before it was cleared.
    """

    def __init__(self, own: int | None = RETRIES, retries: int = RETRIES + OUTAGES):
        self.own, self.retries = own, retries

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        tries = max(1, try_number - max(0, max_tries - self.retries))
        if said := away(exception):
            return RetryDecision.retry(timedelta(seconds=PAUSES[min(tries, len(PAUSES)) - 1]), f"a store is away ({said})")
        if will_fail_again(exception):
            return RetryDecision.fail(f"another try would fail in the same way ({type(exception).__name__})")
        if self.own is not None and tries > self.own:
            return RetryDecision.fail(f"failed {tries} times, and now not for a store that is away")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        return {"type": "patient_with_stores", "own": self.own, "retries": self.retries}
