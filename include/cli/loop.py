"""The loop: a project, its data, its stages."""

from datetime import datetime
from typing import Annotated, Literal

import typer

from include.cli.exits import exit_unless, fail, or_exit, settings_or_exit, terminal

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
        typer.echo(path)
    typer.echo(f"Next: airloop try {name} ingest, and build_features, train, deploy, score, monitor. Then put your own in: docs/adding-a-project.md")


@app.command("try")
def try_stage(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    stage: Annotated[str, typer.Argument(help="ingest, build_features, train, deploy, score or monitor.")],
    rows: Annotated[int, typer.Option(min=100, help="About so many things to predict.")] = 5000,
) -> None:
    """Run one stage as its real DAG on a sample, in a scratch store, and say what it made and where.

    The sample comes from the project's feed. The stages before are run on it too, and kept: a next try does only that again which your
    edits have changed. Tables, MLflow, Feast, ledger and Airflow are its own (AIRLOOP_HOME/try): the real ones are not touched.
    """
    from include.trial import console

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
    if bad and bad not in getattr(upstream, "BAD_KINDS", ()):
        fail(f"{project} has no bad file of kind '{bad}'; there is {', '.join(getattr(upstream, 'BAD_KINDS', ())) or 'none'}")
    try:
        count = upstream.drop(found, since=since, until=until)
        if bad:
            typer.echo(f"bad: {upstream.drop_bad(found, bad, since=since, until=until)}")
    except StorageUnavailable as error:
        fail(str(error))
    ledger.set_clock(project, until)
    typer.echo(
        f"{count} files dropped for {project}; its present is {ledger.iso(until)}. Next: run {project}__ingest (Airflow, or `airloop run {project} ingest`)."
    )


@app.command()
def run(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    stage: Annotated[str, typer.Argument(help="ingest, build_features, train, deploy, score or monitor.")],
    cutoff: Annotated[datetime | None, typer.Option(help="Use only what was known by then (UTC). Default: the project's present.")] = None,
) -> None:
    """Start a stage's DAG in the running Airflow. What it makes wakes the next stage, as always."""
    from datetime import UTC

    from include import ledger
    from include.projects import get_project
    from include.projects.base import STAGES
    from include.stack.api import AirflowApi

    or_exit(get_project, project)
    if stage not in STAGES:
        fail(f"no stage '{stage}'; there is {', '.join(STAGES)}")
    if stage in {"train", "deploy"}:
        _say_if_frozen(project)
    conf = {"cutoff": ledger.iso(cutoff.replace(tzinfo=cutoff.tzinfo or UTC))} if cutoff else {}
    run_id = AirflowApi.of(settings_or_exit()).trigger(f"{project}__{stage}", conf)
    typer.echo(f"{settings_or_exit().airflow_url}/dags/{project}__{stage}/runs/{run_id}")


@app.command()
def request(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option(help="Why: first_model, new_data, new_code, or your own word.")] = "person",
    last_days: Annotated[int | None, typer.Option(min=1, help="Train on examples of the newest days only.")] = None,
) -> None:
    """Ask for a retraining: a run of the project's train DAG that writes its request into the ledger. The gate decides."""
    from include.projects import get_project
    from include.stack.api import AirflowApi

    or_exit(get_project, project)
    _say_if_frozen(project)
    conf = {"reason": reason, **({"last_days": last_days} if last_days else {})}
    run_id = AirflowApi.of(settings_or_exit()).trigger(f"{project}__train", conf)
    typer.echo(f"{settings_or_exit().airflow_url}/dags/{project}__train/runs/{run_id}")


@app.command()
def materialize(project: Annotated[str, typer.Argument(help="A folder of include/projects.")]) -> None:
    """Fill the online store again with all features of a project: after it has lost its data, or when it is another one now. Safe to repeat."""
    from feast.errors import FeastObjectNotFoundException

    from include.features.build import materialize_anew
    from include.projects import get_project

    found = or_exit(get_project, project)
    settings_or_exit()
    try:
        typer.echo(f"The online store has {project}'s features up to {materialize_anew(found)}.")
    except (FeastObjectNotFoundException, ValueError) as error:
        fail(f"{error}")


def _say_if_frozen(project: str) -> None:
    from include import ledger

    if held := ledger.freeze_of(project):
        typer.echo(f"{held}. Until then it waits.", err=True)
