"""Divide the capacity of one worker among its callers: requests, rows, and bytes of bodies."""

from serving.problems import ProblemError, unavailable


class Share:
    """A limited amount that callers share.

    Args:
        what: The unit, in the plural.
        most: Maximum amount in use by all callers.
        most_per_caller: Maximum amount in use by one caller.
    """

    def __init__(self, what: str, most: int, most_per_caller: int) -> None:
        self.what, self.most, self.most_per_caller = what, most, min(most, most_per_caller)
        self.used = 0
        self._by_caller: dict[str, int] = {}

    def take(self, caller: str, amount: int = 1) -> None:
        """Take an amount. ``give_back`` must follow.

        Raises:
            ProblemError: 503 if the amount is not left. 429 if the caller has used up its share.
        """
        if self.used + amount > self.most:
            raise unavailable(
                "queue-full", "The queue is full", f"{self.used} {self.what} are being answered; ask again in a moment"
            )
        mine = self._by_caller.get(caller, 0) + amount
        if mine > self.most_per_caller:
            detail = (
                f"{mine - amount} {self.what} of '{caller}' are being answered; one caller may have"
                f" {self.most_per_caller} at once"
            )
            raise ProblemError(429, "share-used", "Too many concurrent requests", detail, retry_after=1)
        self._by_caller[caller] = mine
        self.used += amount

    def give_back(self, caller: str, amount: int = 1) -> None:
        """Return an amount that ``take`` took."""
        self.used -= amount
        left = self._by_caller.get(caller, 0) - amount
        if left > 0:
            self._by_caller[caller] = left
        else:
            self._by_caller.pop(caller, None)


class Shares:
    """The shares of one worker.

    Without keys, callers cannot be distinguished, so one caller may use everything.

    Args:
        keyed: True if callers have keys.
        rows: Instances of the requests that are being answered.
        body_bytes: Bytes of bodies that are being received or answered.
    """

    def __init__(self, *, keyed: bool, requests: int, rows: int, body_bytes: int) -> None:
        def share(what: str, most: int) -> Share:
            return Share(what, most, max(1, most // 2) if keyed else most)

        self.requests, self.rows, self.body_bytes = (
            share("requests", requests),
            share("rows", rows),
            share("bytes", body_bytes),
        )
