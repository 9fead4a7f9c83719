"""Find the faults of an installation and suggest fixes: `airloop doctor`.

Each check uses the real server, as the loop would: it connects, logs in, writes and reads back. It
reports one line, either a success or a fault with its fix. A check that another fault makes
impossible says so and does not count as a second fault.
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
    """Run all checks and return their findings.

    Args:
        tell: Called with each finding immediately.
    """
    all_findings = []
    for name, check in CHECKS:
        try:
            with quick():
                findings = list(check(settings))
        # An unexpected error in one check must not hide the findings of the others.
        except Exception as error:
            findings = [
                fault(
                    name,
                    f"the check itself ended with {type(error).__name__}: {_line(error)}",
                    "fix the cause that it names; if it names none, report a bug",
                )
            ]
        for finding in findings:
            tell(finding)
        all_findings += findings
    return all_findings


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
