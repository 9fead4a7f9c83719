"""Writes docs/lifecycle.md from the table of states in include/ledger/lifecycle.py:

``make docs``. A test compares.
"""

from include.ledger import lifecycle
from include.settings import REPOSITORY

HEAD = """# States, owners, deadlines

Made by `make docs` from `include/ledger/lifecycle.py`; a test compares. Why it is so: [ADR 51](adr/0051-every-state-has-an-owner-and-a-deadline.md).

Each request, drift episode and rollout that waits has an owner, a next step and a deadline. `monitor` begins each run with a sweep (`sweep_overdue`):

- A run of `train` or `deploy` holds its request by a lease. Each step renews it. The sweep asks Airflow for the state of the run. A run that has
  ended without an end for its request loses the request at once. A run that Airflow does not know loses it when the lease ends.
- The request is then given back with a pause: {pauses}. After {attempts} attempts it is `failed`, with the reason in its `outcome`.
- A request whose event was lost gets another event. While the DAG that must take it up is paused, none is sent: Airflow drops events of paused DAGs.
  The request waits, its `outcome` says why, its deadline begins anew, and nothing is counted.
- In a frozen project everything waits for the thaw.
- A rollout whose run is gone is taken up by the next run of `deploy`, which adopts it. A rollout whose time has passed is taken back.
- A drift that lasts asks again after the policy's cool-down, which doubles with each request in vain, up to {longest} times. It never stops asking.

## Who is told

`AIRLOOP_NOTIFY` names a function (`package.module:function`, called with one dict) or an address (it takes the dict as JSON by POST). The dict has
`project`, `subject`, `text` and `recorded_at`. The hook is called when a request fails, when one waits for a paused DAG, when a rollout is taken
back, and when a drift has asked {asks} times in vain. The ledger keeps each notice. A hook that fails is logged and tried again by the next sweeps,
{tries} times in all; it stops nothing. Without a hook the notice is in the log of `sweep_overdue`. The setting is not masked in logs: for an address
that is a secret, name a function that reads it.

"""  # noqa: E501


def page() -> str:
    """Return the whole page."""
    from include.ledger.notices import TRIES

    pauses = ", ".join(f"{lifecycle.pause(n).total_seconds() / 60:.0f} minutes" for n in range(1, lifecycle.ATTEMPTS))
    fields = {
        "pauses": pauses,
        "attempts": lifecycle.ATTEMPTS,
        "longest": lifecycle.LONGEST_COOLDOWN,
        "asks": lifecycle.MAX_REQUESTS,
        "tries": TRIES,
    }
    return HEAD.format(**fields) + lifecycle.page()


def main() -> None:
    (REPOSITORY / "docs" / "lifecycle.md").write_text(page())
    print("docs/lifecycle.md is written")


if __name__ == "__main__":
    main()
