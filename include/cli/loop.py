"""Commands for the loop: a project, its data and its stages."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from include.cli.exits import (
    Json,
    airflow_or_exit,
    exit_on,
    exit_unless,
    fail,
    project_or_exit,
    say,
    say_json,
    settings_or_exit,
    stated,
    terminal,
)

if TYPE_CHECKING:
    from include.settings import Settings
    from include.stack.api import AirflowApi

app = typer.Typer()


@app.command()
def demo(
    months: Annotated[
        int, typer.Option(min=4, max=12, help="Number of the last month of the replay, which starts in January.")
    ] = 12,
    restart: Annotated[
        bool, typer.Option("--restart", help="Stop the stack, delete all data under AIRLOOP_HOME, and start again.")
    ] = False,
) -> None:
    """Replay a year of real flights through the running Airflow and show the result.

    Starts the stack if it is not running, and does not stop it afterwards. If the command is
    killed, the next call continues with the unfinished month. The result is a table here, and a
    page with plots and a JSON file under AIRLOOP_HOME/demo.
    """
    from include.demo import console

    exit_unless(console.demo(settings_or_exit(), terminal(), months=months, restart=restart))


@app.command()
def new_project(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the folder, the DAGs, the model and the serving address: lowercase letters, digits and _."
        ),
    ],
    kind: Annotated[
        Literal["binary", "regression"],
        typer.Option(help="Kind of prediction: a probability (binary) or a number (regression)."),
    ] = "binary",
) -> None:
    """Create a working project: one folder, in include/projects or the folder of AIRLOOP_PROJECTS.

    Each file marks the places to change. A synthetic upstream is included, so that you can try
    every stage first.
    """
    from include.scaffold.new_project import new_project as make

    with exit_on(ValueError):
        paths = make(name, kind)
    for path in paths:
        say(path)
    say(
        f"Next: airloop try {name} ingest, and build_features, train, deploy, score, monitor. Then put your own in:"
        " docs/adding-a-project.md"
    )


@app.command()
def check(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    as_json: Json = False,
) -> None:
    """Check a project in about a second, before anything runs. List all faults.

    Exit status 1 if there is a fault. The command checks the metric, the trainers and their
    parameters, inputs, Feast's views and the functions of each file. On the newest ingested rows
    (or those of `airloop try`) it also checks known_at, examples and labels. There it compares the
    features of one day alone with those computed over all days.
    """
    from include.checks.check import check as look
    from include.checks.console import show

    with exit_on(ValueError):
        report = look(settings_or_exit(), project)
    if as_json:
        say_json(
            {
                "findings": [one._asdict() for one in report.findings],
                "looked_at": report.looked_at,
                "skipped": report.skipped,
            }
        )
    else:
        show(project, report, say)
    exit_unless(not report.faults)


@app.command("try")
def try_stage(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    stage: Annotated[str, typer.Argument(help="Stage: ingest, build_features, train, deploy, score or monitor.")],
    rows: Annotated[int, typer.Option(min=100, help="Approximate number of examples in the sample.")] = 5000,
) -> None:
    """Run one stage as its real DAG on a sample, in a scratch store, and show the results.

    The sample comes from the project's feed. Earlier stages run on it too. All stages of a project
    share one scratch store, and a later call repeats only the stages that your edits affect.
    Tables, MLflow, Feast, ledger and Airflow are separate (AIRLOOP_HOME/try): the real ones are not
    touched.
    """
    from include.trial import console

    project_or_exit(project)
    exit_unless(console.try_it(settings_or_exit(), terminal(), project, stage, rows))


@app.command()
def replay(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    since: Annotated[datetime, typer.Option(help="Write files that were published after this time (UTC).")],
    until: Annotated[
        datetime,
        typer.Option(help="Write files that were published up to this time (UTC). The project's clock is set to it."),
    ],
    bad: Annotated[
        str | None, typer.Option(help="Also write a bad file of this kind. An unknown kind lists the known ones.")
    ] = None,
) -> None:
    """Write files to the landing zone as the project's upstream would. Set the project's clock.

    The rest of the system reads only the landing zone, so you can also copy your own files there.
    Then run `<project>__ingest`.
    """
    from datetime import UTC

    from include import ledger
    from include.data.feed import drop, drop_bad
    from include.data.storage import StorageUnavailableError

    definition = project_or_exit(project)
    kinds = getattr(definition.module("feed"), "BAD_KINDS", ())
    since, until = since.replace(tzinfo=since.tzinfo or UTC), until.replace(tzinfo=until.tzinfo or UTC)
    if since >= until:
        fail(
            f"--since {ledger.iso(since)} is not before --until {ledger.iso(until)}: no file can be between them. The"
            f" clock of {project} was not touched"
        )
    if bad and bad not in kinds:
        fail(f"{project} has no bad file of kind '{bad}'; there is {', '.join(kinds) or 'none'}")
    try:
        count = drop(definition, since=since, until=until)
        if bad:
            say(f"bad: {drop_bad(definition, bad, since=since, until=until)}")
    except StorageUnavailableError as error:
        fail(str(error))
    ledger.set_clock(project, until)
    say(
        f"{count} files dropped for {project}; its present is {ledger.iso(until)}. Next: run {project}__ingest"
        f" (Airflow, or `airloop run {project} ingest`)."
    )


@app.command()
def run(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    stage: Annotated[str, typer.Argument(help="Stage: ingest, build_features, train, deploy, score or monitor.")],
    cutoff: Annotated[
        datetime | None, typer.Option(help="Use only data known by this time (UTC). Default: the project's present.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the run ends, and show its result. Exit status 1 if it failed.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="How many seconds --wait waits. The run continues.")] = 86_400,
) -> None:
    """Start a stage's DAG in the running Airflow. Its results start the next stage, as usual."""

    from include.projects.base import STAGES

    project_or_exit(project)
    if stage not in STAGES:
        fail(f"no stage '{stage}'; there is {', '.join(STAGES)}")
    if stage in {"train", "deploy"}:
        _say_if_frozen(project)
    conf = _cutoff_conf(project, cutoff)
    airflow, dag_id = airflow_or_exit(), f"{project}__{stage}"
    if stage == "train":
        _refuse_missing_pools(airflow, project)
    paused = airflow.call("GET", f"dags/{dag_id}")["is_paused"] if wait else False
    run_id = airflow.trigger(dag_id, conf)
    say(f"{settings_or_exit().airflow_url}/dags/{dag_id}/runs/{run_id}")
    if paused:
        fail(f"{dag_id} is paused: the run waits until it is unpaused")
    if wait:
        _wait(airflow, dag_id, run_id, timeout)


def _refuse_missing_pools(airflow: "AirflowApi", project: str) -> None:
    from include.projects import get_project
    from include.stack.runs import missing_pools

    if missing := missing_pools(airflow, get_project(project)):
        fail(
            f"Airflow has no pool {', '.join(missing)}, so steps of that compute class would wait for ever. "
            "Create it with `airloop sync-pools`, which reads AIRLOOP_POOLS"
        )


def _wait(airflow: "AirflowApi", dag_id: str, run_id: str, timeout: float) -> None:
    """Follow a run until it ends. Print the record that its stage wrote."""
    from include import ledger
    from include.stack.runs import errors, follow

    state = follow(airflow, dag_id, run_id, say, timeout=timeout)
    if state is None:
        fail(f"{run_id} goes on after {timeout:.0f} s; `airloop status {dag_id.partition('__')[0]}` shows its progress")
    project, _, stage = dag_id.partition("__")
    record = ledger.last_cutoffs(project).get(stage)
    if record and record["dag_run"] == run_id:
        say(f"{stage} up to {record['cutoff']}:")
        for name, value in record["summary"].items():
            say(f"  {name}: {value}")
    for line in errors(airflow, dag_id, run_id):
        say(line, err=True)
    say(f"{dag_id} {run_id}: {state}")
    exit_unless(state == "success")


@app.command()
def retrain(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    reason: Annotated[
        str,
        typer.Option(callback=stated, help="Reason of the request: first_model, new_data, new_code, or your own text."),
    ] = "person",
    last_days: Annotated[
        int | None, typer.Option(min=1, help="Train only on the examples of this many most recent days.")
    ] = None,
    cutoff: Annotated[
        datetime | None, typer.Option(help="Use only data known by this time (UTC). Default: the project's present.")
    ] = None,
) -> None:
    """Request a retraining. The gate decides about the result.

    This starts the project's train DAG, which writes the request into the ledger. A request with
    the same reason and cutoff joins an earlier one that has not ended. If the earlier one has
    ended, it becomes a new request.
    """

    from include import ledger

    project_or_exit(project)
    _say_if_frozen(project)
    parameters = {"last_days": last_days} if last_days else {}
    cutoff_conf = _cutoff_conf(project, cutoff)
    if before := ledger.asked_before(
        project, cutoff=cutoff_conf.get("cutoff") or ledger.now(project), reason=reason, parameters=parameters
    ):
        what = (
            "nothing new is asked for: this run takes it up, or is skipped if another run has it"
            if before.live
            else "this is a new request"
        )
        why = before.outcome.get("reason") or before.outcome.get("deploy_reason")
        say(f"Asked for before: {before}{f' ({why})' if why else ''}; {what}.", err=True)
    conf = {"reason": reason, **parameters, **cutoff_conf}
    airflow = airflow_or_exit()
    _refuse_missing_pools(airflow, project)
    run_id = airflow.trigger(f"{project}__train", conf)
    say(f"{settings_or_exit().airflow_url}/dags/{project}__train/runs/{run_id}")


@app.command()
def materialize(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
) -> None:
    """Write all features of a project to the online store again. Safe to repeat.

    Use it after the online store lost its data or was replaced.
    """
    from feast.errors import FeastObjectNotFoundException

    from include.features.build import materialize_anew

    definition = project_or_exit(project)
    settings_or_exit()
    try:
        say(f"The online store has {project}'s features up to {materialize_anew(definition)}.")
    except (FeastObjectNotFoundException, ValueError) as error:
        fail(f"{error}")


@app.command()
def rewind(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    reason: Annotated[
        str, typer.Option("--reason", "--why", callback=stated, help="Reason, which is recorded in the ledger.")
    ],
    to: Annotated[
        datetime | None,
        typer.Option(
            help="Last cutoff to keep (UTC). Default: the project's present, so that only future cutoffs are removed."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and change nothing.")] = False,
    by: Annotated[str | None, typer.Option(help="Name to record. Default: your login name.")] = None,
) -> None:
    """Remove the results of runs whose cutoff was too late, so that later runs work again.

    These are features, predictions, stage records and decisions. A stage treats a run for an
    earlier cutoff than its last one as outdated. Therefore one cutoff in the future stops the stage
    until that date, and a history loaded at today's cutoff has features without values up to today.
    The command lists what it cannot remove. It is safe to repeat.
    """
    from datetime import UTC

    from include import ledger
    from include.operations import cutoffs
    from include.operations.freezing import who

    definition = project_or_exit(project)
    settings = settings_or_exit()
    until = to.replace(tzinfo=to.tzinfo or UTC) if to else cutoffs.present(definition)
    with exit_on(cutoffs.RewindError):
        effects = cutoffs.traces(definition, until)
    if not effects.blocking:
        say(f"{project}: nothing is of a cutoff after {until:%Y-%m-%dT%H:%M:%SZ}.")
    for line in (*effects.blocking, *(f"stays: {line}" for line in effects.lasting)):
        say(line)
    if dry_run or not effects.blocking:
        return
    if to is None and ledger.later_than(project, until).clock:
        fail(
            f"the clock of the replay of {project} is ahead of the time of day: give with --to the time that it is to"
            " have"
        )
    _exit_if_busy(settings, project)
    if not yes:
        typer.confirm(f"Take back everything of {project} after {until:%Y-%m-%dT%H:%M:%SZ}?", abort=True)
    with exit_on(cutoffs.RewindError):
        done = cutoffs.rewind(definition, until, by=by or who(), why=reason)
    say()
    for line in done.blocking:
        say(f"done: {line}")
    say(
        f"Next: `airloop run {project} build_features{f' --cutoff {to:%Y-%m-%dT%H:%M:%S}' if to else ''}`; its results"
        " start the next stages."
    )


def _exit_if_busy(settings: "Settings", project: str) -> None:
    """Exit if a stage of the project runs, or if that cannot be known."""
    import httpx

    from include.stack import lifecycle
    from include.stack.api import busy_stages

    try:
        running = busy_stages(settings, project)
    except httpx.TransportError as error:
        scheduler = next(service for service in lifecycle.status(settings) if service.name == "scheduler")
        if settings.profile == "embedded" and scheduler.state in {"stopped", "died"}:
            return
        fail(
            f"Airflow at {settings.airflow_url} does not answer ({error}), so it is not known whether a stage of"
            f" {project} is running: "
            + (
                "start it with `airloop up`, or stop all of it with `airloop down`"
                if settings.profile == "embedded"
                else "start its API server"
            )
            + ", and do it again"
        )
    if running:
        fail(
            f"{', '.join(running)} of {project} is running: wait until it has ended, or pause the DAG, and do it again"
        )


def _cutoff_conf(project: str, cutoff: datetime | None) -> dict[str, str]:
    """Return a DAG run's configuration with this cutoff, or exit if the cutoff is not allowed."""
    from datetime import UTC

    from include import ledger

    if not cutoff:
        return {}
    with exit_on(ValueError):
        return {"cutoff": ledger.check_cutoff(project, cutoff.replace(tzinfo=cutoff.tzinfo or UTC))}


def _say_if_frozen(project: str) -> None:
    from include import ledger

    if held := ledger.freeze_of(project):
        say(f"{held}. Until then it waits.", err=True)
