"""The loop: a project, its data, its stages."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from include.cli.exits import Json, airflow_or_exit, exit_unless, fail, or_exit, say, say_json, settings_or_exit, terminal, told

if TYPE_CHECKING:
    from include.stack.api import AirflowApi

app = typer.Typer()


@app.command()
def demo(
    months: Annotated[int, typer.Option(min=4, max=12, help="Replay January to this month.")] = 12,
    restart: Annotated[bool, typer.Option("--restart", help="Stop the stack, forget all data under AIRLOOP_HOME, begin again.")] = False,
) -> None:
    """Replay a year of real flights through the running Airflow and show what came of it.

    Starts the stack if need be and leaves it up. Killed in the middle, it goes on with the month that was not finished. The result is
    a table here, a page with plots and a JSON file under AIRLOOP_HOME/demo.
    """
    from include.demo import console

    exit_unless(console.demo(settings_or_exit(), terminal(), months=months, restart=restart))


@app.command()
def new_project(
    name: Annotated[str, typer.Argument(help="Small letters, digits and _: the folder's name, and that of DAGs, model and serving address.")],
    kind: Annotated[Literal["binary", "regression"], typer.Option(help="What is predicted: a probability, or a number.")] = "binary",
) -> None:
    """Make a project that works at once: a folder of include/projects and a module of feature_repo.

    Each file says, at each place, what to write instead. A made-up upstream comes with it, so that every stage can be tried first.
    """
    from include.scaffold.new_project import new_project as make

    for path in or_exit(lambda wanted: make(wanted, kind), name):
        say(path)
    say(f"Next: airloop try {name} ingest, and build_features, train, deploy, score, monitor. Then put your own in: docs/adding-a-project.md")


@app.command()
def check(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    as_json: Json = False,
) -> None:
    """Check a project in about a second, before anything runs. Exit status 1 if there is a fault; all faults are listed.

    Looked at: metric, trainers and their parameters, inputs, Feast's views, the functions of each file; and on the newest ingested rows (or those of
    `airloop try`) known_at, examples, labels, and whether features of one day alone equal those computed over all.
    """
    from include.checks.check import check as look
    from include.checks.console import show

    report = or_exit(lambda name: look(settings_or_exit(), name), project)
    if as_json:
        say_json({"findings": [one._asdict() for one in report.findings], "looked_at": report.looked_at, "skipped": report.skipped})
    else:
        show(project, report, say)
    exit_unless(not report.faults)


@app.command("try")
def try_stage(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    stage: Annotated[str, typer.Argument(help="ingest, build_features, train, deploy, score or monitor.")],
    rows: Annotated[int, typer.Option(min=100, help="About so many things to predict.")] = 5000,
) -> None:
    """Run one stage as its real DAG on a sample, in a scratch store, and say what it made and where.

    The sample comes from the project's feed. The stages before are run on it too. The project's stages share one scratch store, and a next try
    does only that again which your edits have changed. Tables, MLflow, Feast, ledger and Airflow are its own (AIRLOOP_HOME/try): the real ones are not touched.
    """
    from include.projects import get_project
    from include.trial import console

    or_exit(get_project, project)
    exit_unless(console.try_it(settings_or_exit(), terminal(), project, stage, rows))


@app.command()
def feed(
    project: Annotated[str, typer.Argument(help="Whose upstream: a folder of include/projects.")],
    since: Annotated[datetime, typer.Option(help="Files published after this (UTC).")],
    until: Annotated[datetime, typer.Option(help="... and up to this; also the time that it then is for the project.")],
    bad: Annotated[str | None, typer.Option(help="Drop a bad file of this kind too; an unknown kind lists them.")] = None,
) -> None:
    """Drop files into the landing zone as the project's upstream would, and set the project's clock.

    The rest of the system knows only the landing zone: you can as well copy files of your own there. Then run `<project>__ingest`.
    """
    from datetime import UTC

    from include import ledger
    from include.data.storage import StorageUnavailable
    from include.projects import get_project

    found = or_exit(get_project, project)
    upstream = found.module("feed")
    since, until = since.replace(tzinfo=since.tzinfo or UTC), until.replace(tzinfo=until.tzinfo or UTC)
    if since >= until:
        fail(f"--since {ledger.iso(since)} is not before --until {ledger.iso(until)}: no file can be between them. The clock of {project} was not touched")
    if bad and bad not in getattr(upstream, "BAD_KINDS", ()):
        fail(f"{project} has no bad file of kind '{bad}'; there is {', '.join(getattr(upstream, 'BAD_KINDS', ())) or 'none'}")
    try:
        count = upstream.drop(found, since=since, until=until)
        if bad:
            say(f"bad: {upstream.drop_bad(found, bad, since=since, until=until)}")
    except StorageUnavailable as error:
        fail(str(error))
    ledger.set_clock(project, until)
    say(f"{count} files dropped for {project}; its present is {ledger.iso(until)}. Next: run {project}__ingest (Airflow, or `airloop run {project} ingest`).")


@app.command()
def run(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    stage: Annotated[str, typer.Argument(help="ingest, build_features, train, deploy, score or monitor.")],
    cutoff: Annotated[datetime | None, typer.Option(help="Use only what was known by then (UTC). Default: the project's present.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and tell what came of it. Exit status 1 if it failed.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="With --wait: seconds after which to wait no longer. The run goes on.")] = 86_400,
) -> None:
    """Start a stage's DAG in the running Airflow. What it makes wakes the next stage, as always."""
    from datetime import UTC

    from include import ledger
    from include.projects import get_project
    from include.projects.base import STAGES

    or_exit(get_project, project)
    if stage not in STAGES:
        fail(f"no stage '{stage}'; there is {', '.join(STAGES)}")
    if stage in {"train", "deploy"}:
        _say_if_frozen(project)
    conf = {"cutoff": or_exit(lambda name: ledger.check_cutoff(name, cutoff.replace(tzinfo=cutoff.tzinfo or UTC)), project)} if cutoff else {}
    airflow, dag_id = airflow_or_exit(), f"{project}__{stage}"
    if stage == "train":
        _refuse_missing_pools(airflow, project)
    paused = airflow.call("GET", f"dags/{dag_id}")["is_paused"] if wait else False
    run_id = airflow.trigger(dag_id, conf)
    say(f"{settings_or_exit().airflow_url}/dags/{dag_id}/runs/{run_id}")
    if paused:
        fail(f"{dag_id} is paused: the run waits until somebody unpauses it")
    if wait:
        _wait(airflow, dag_id, run_id, timeout)


def _refuse_missing_pools(airflow: "AirflowApi", project: str) -> None:
    from include.projects import get_project
    from include.stack.runs import missing_pools

    if missing := missing_pools(airflow, get_project(project)):
        fail(f"Airflow has no pool {', '.join(missing)}: steps of that compute class would wait for ever. `airloop pools` makes those that AIRLOOP_POOLS names")


def _wait(airflow: "AirflowApi", dag_id: str, run_id: str, timeout: float) -> None:
    """Follow a run to its end, and tell what its stage has put on record."""
    from include import ledger
    from include.stack.runs import errors, follow

    state = follow(airflow, dag_id, run_id, say, timeout=timeout)
    if state is None:
        fail(f"{run_id} goes on after {timeout:.0f} s; `airloop status {dag_id.partition('__')[0]}` tells what becomes of it")
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
def request(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option(help="Why: first_model, new_data, new_code, or your own word.")] = "person",
    last_days: Annotated[int | None, typer.Option(min=1, help="Train on examples of the newest days only.")] = None,
    cutoff: Annotated[datetime | None, typer.Option(help="Use only what was known by then (UTC). Default: the project's present.")] = None,
) -> None:
    """Ask for a retraining: a run of the project's train DAG that writes its request into the ledger. The gate decides.

    Asking again for the same reason and cutoff joins a request that is not over yet; one that has ended is asked for anew.
    """
    from datetime import UTC

    from include import ledger
    from include.projects import get_project

    or_exit(get_project, project)
    _say_if_frozen(project)
    parameters = {"last_days": last_days} if last_days else {}
    given = {"cutoff": or_exit(lambda name: ledger.check_cutoff(name, cutoff.replace(tzinfo=cutoff.tzinfo or UTC)), project)} if cutoff else {}
    if before := ledger.asked_before(project, cutoff=given.get("cutoff") or ledger.now(project), reason=reason, parameters=parameters):
        what = "nothing new is asked for: this run takes it up, or is skipped if another run has it" if before.live else "this is a new request"
        why = before.outcome.get("reason") or before.outcome.get("deploy_reason")
        say(f"Asked for before: {before}{f' ({why})' if why else ''}; {what}.", err=True)
    conf = {"reason": reason, **parameters, **given}
    airflow = airflow_or_exit()
    _refuse_missing_pools(airflow, project)
    run_id = airflow.trigger(f"{project}__train", conf)
    say(f"{settings_or_exit().airflow_url}/dags/{project}__train/runs/{run_id}")


@app.command()
def materialize(project: Annotated[str, typer.Argument(help="A folder of include/projects.")]) -> None:
    """Fill the online store again with all features of a project: after it has lost its data, or when it is another one now. Safe to repeat."""
    from feast.errors import FeastObjectNotFoundException

    from include.features.build import materialize_anew
    from include.projects import get_project

    found = or_exit(get_project, project)
    settings_or_exit()
    try:
        say(f"The online store has {project}'s features up to {materialize_anew(found)}.")
    except (FeastObjectNotFoundException, ValueError) as error:
        fail(f"{error}")


@app.command()
def rewind(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option("--reason", "--why", help="Why; it is kept in the ledger.")],
    to: Annotated[datetime | None, typer.Option(help="The last cutoff that stays (UTC). Default: the project's present, so that only future ones go.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be taken back.")] = False,
    by: Annotated[str | None, typer.Option(help="Who does it. Default: the name of your login.")] = None,
) -> None:
    """Take back what runs with too late a cutoff left: features, predictions, records of stages, and decisions. Later runs then work again.

    A stage takes a run for an earlier cutoff than its last one for an old run. So one cutoff in the future stops it until that date, and a history
    that was loaded at today's cutoff has features without values up to today. It says what it cannot take back. It can be done again.
    """
    from datetime import UTC

    from include import ledger
    from include.operations import cutoffs
    from include.operations.freezing import who
    from include.projects import get_project
    from include.stack.api import busy_stages

    found = or_exit(get_project, project)
    settings = settings_or_exit()
    until = to.replace(tzinfo=to.tzinfo or UTC) if to else cutoffs.present(found)
    seen = told(cutoffs.RewindError, cutoffs.traces, found, until)
    if not seen.blocking:
        say(f"{project}: nothing is of a cutoff after {until:%Y-%m-%dT%H:%M:%SZ}.")
    for line in (*seen.blocking, *(f"stays: {line}" for line in seen.lasting)):
        say(line)
    if dry_run or not seen.blocking:
        return
    if to is None and ledger.later_than(project, until).clock:
        fail(f"the clock of the replay of {project} is ahead of the time of day: give with --to the time that it is to have")
    if running := busy_stages(settings, project):
        fail(f"{', '.join(running)} of {project} is running: wait until it has ended, or pause the DAG, and do it again")
    if not yes:
        typer.confirm(f"Take back everything of {project} after {until:%Y-%m-%dT%H:%M:%SZ}?", abort=True)
    done = told(cutoffs.RewindError, lambda: cutoffs.rewind(found, until, by=by or who(), why=reason))
    say()
    for line in done.blocking:
        say(f"done: {line}")
    say(f"Next: `airloop run {project} build_features{f' --cutoff {to:%Y-%m-%dT%H:%M:%S}' if to else ''}`; what it makes wakes the next stages.")


def _say_if_frozen(project: str) -> None:
    from include import ledger

    if held := ledger.freeze_of(project):
        say(f"{held}. Until then it waits.", err=True)
