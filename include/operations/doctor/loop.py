"""Check the loop for states that block it permanently."""

from collections.abc import Iterator

from include import ledger
from include.data import age
from include.operations import cutoffs
from include.operations.doctor.finding import Finding, fault, note, ok
from include.outages import outage_of
from include.projects import all_projects
from include.registry.lost import lost_champion
from include.settings import Settings


def future_cutoffs(_: Settings) -> Iterator[Finding]:
    """Find cutoffs in the future.

    They stop features, predictions and monitoring until that date.
    """
    wrong = False
    for project in all_projects():
        try:
            effects = cutoffs.traces(project, cutoffs.present(project))
        # The error comes from a store. The check of that store reports the fault.
        except Exception as error:
            yield note("cutoffs", f"{project.name}: not known, since {_line(error)}")
            return
        if effects.blocking:
            wrong = True
            seen = f"{project.name}: a cutoff in the future stops later runs: {'; '.join(effects.blocking)}"
            yield fault("cutoffs", seen, f"`airloop rewind {project.name} --reason ...` takes it back")
        for line in effects.lasting:
            if line.startswith("MLflow"):
                # MLflow's own check reports it.
                continue
            yield fault("cutoffs", f"{project.name}: {line}", 'see docs/runbooks/build_features.md, "A wrong cutoff"')
    if not wrong:
        yield ok("cutoffs", "none is in the future")


def data_age(_: Settings) -> Iterator[Finding]:
    """Compare the newest row of each project with its present."""
    for project in all_projects():
        try:
            newest = age.newest_row(project)
            late = age.warning(project, ledger.now(project.name)) if newest else None
        except Exception as error:
            yield note("data", f"{project.name}: not known, since {_line(error)}")
            return
        if newest is None:
            yield note("data", f"{project.name}: nothing was ingested yet")
        elif late:
            # This is not a fault: the data of some projects ended long ago.
            yield note("data", f"{project.name}: {late}")
        else:
            yield ok("data", f"{project.name}: the newest row was known at {ledger.iso(newest)}")


def champions(_: Settings) -> Iterator[Finding]:
    """Find projects whose champion was deleted in MLflow, or has lost its alias there."""
    for project in all_projects():
        try:
            gone = lost_champion(project)
        # The error comes from MLflow or the ledger. Their checks report the fault.
        except Exception as error:
            yield note("champion", f"{project.name}: not known, since {_line(error)}")
            return
        if gone:
            yield fault("champion", str(gone), f"`airloop restore-champion {project.name} --reason ...`")


def _line(error: Exception) -> str:
    if outage_of(error):
        return "a server does not answer; see above"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
