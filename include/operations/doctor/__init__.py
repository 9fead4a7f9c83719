"""`airloop doctor`: what is wrong with an installation, and what to do about it.

Each check asks the real thing, as the loop would: it connects, logs in, writes and reads back. It is told by one line that it is well, or by what is wrong
with the fix. A check that cannot be made because of another one's fault says so and is no second fault.
"""

from collections.abc import Callable, Iterable

from include.operations.doctor import loop, machine, projects, servers, stores, wiring, work
from include.operations.doctor.finding import Finding, fault
from include.registry.client import quick
from include.settings import Settings

Check = Callable[[Settings], Iterable[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("settings", machine.secrets_given),
    ("projects", projects.projects),
    ("disk", machine.disk),
    ("permissions", machine.permissions),
    ("databases", stores.databases),
    ("object store", stores.object_store),
    ("projects", projects.checked),
    ("online store", stores.online_store),
    ("mlflow", servers.mlflow),
    ("airflow", servers.airflow),
    ("wiring", wiring.wiring),
    ("serving", servers.serving),
    ("cutoffs", loop.future_cutoffs),
    ("data", loop.data_age),
    ("champion", loop.champions),
    ("requests", work.requests),
    ("runs", work.runs),
    ("backup", work.last_backup),
    ("features", stores.online_features),
)


def examine(settings: Settings, tell: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Make all checks; gives what they found.

    Args:
        tell: called with each finding at once.
    """
    found = []
    for name, check in CHECKS:
        try:
            with quick():
                findings = list(check(settings))
        except Exception as error:  # one check that does not know an error must not hide what the others find
            findings = [fault(name, f"the check itself ended with {type(error).__name__}: {_line(error)}", "mend what it names; if it names nothing, tell us")]
        for finding in findings:
            tell(finding)
        found += findings
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
