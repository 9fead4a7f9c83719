"""The `airloop` command. Each command is a few lines: what it does lies in the room that it imports when it is called."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="airloop",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Airflow, MLflow and serving on this machine, and the loop that they run.\n\n"
    "Begin with [bold]airloop up[/bold]; it prints where everything is and how to log in. Every setting is an environment variable "
    "AIRLOOP_...: see include/settings.py.",
)


users = typer.Typer(no_args_is_help=True, help="Airflow's accounts and their roles: viewer, editor, operator, admin (docs/runbooks/access.md).")
app.add_typer(users, name="users")


@app.command()
def up() -> None:
    """Start what does not run (Airflow, MLflow, serving), wait until each answers, print addresses and login.

    Doing it again is harmless: only what is missing is started. State lies under AIRLOOP_HOME (data/ in the repository); ports are
    AIRLOOP_AIRFLOW_PORT, AIRLOOP_MLFLOW_PORT and AIRLOOP_SERVING_PORT. When a port is taken, nothing is started.
    """
    from include.stack import console

    _exit_unless(console.up(_settings(), _terminal()))


@app.command()
def down() -> None:
    """Stop everything that `airloop up` started, and whatever those processes started. Data stays."""
    from include.stack import console

    console.down(_settings(), _terminal())


@app.command()
def status() -> None:
    """Show each service: whether it answers, its process, its address. Exit status 1 unless all of them answer."""
    from include.stack import console

    _exit_unless(console.status(_settings(), _terminal()))


@app.command()
def freeze(
    why: Annotated[str, typer.Option(help="The reason; whoever meets the freeze reads it.")],
    project: Annotated[str | None, typer.Argument(help="A folder of include/projects.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All projects, also those to come.")] = False,
    by: Annotated[str | None, typer.Option(help="Who freezes. Default: the name of your login.")] = None,
) -> None:
    """Have nothing trained, promoted or rolled out, until `airloop thaw`. Ingest, features, scores, serving and monitoring go on.

    Retrain requests wait. What runs at this moment ends, and what would come after it does not begin; a rollout that has begun is brought to its end.
    """
    from include.operations import freezing

    _one_or_all(project, everything)
    held, new = _or_exit(lambda _: freezing.freeze(project, by=by or freezing.who(), why=why), "")
    typer.echo(f"{held}." if new else f"It was frozen already, and that stays: {held}.")


@app.command()
def thaw(
    project: Annotated[str | None, typer.Argument(help="A folder of include/projects.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="End the freeze of all. Projects that were frozen each for itself stay frozen.")] = False,
    by: Annotated[str | None, typer.Option(help="Who thaws. Default: the name of your login.")] = None,
) -> None:
    """End a freeze and have taken up what waited: requests are trained, a model that had passed the gate is deployed."""
    from include.operations import freezing

    _one_or_all(project, everything)
    thawed = _or_exit(lambda _: freezing.thaw(_settings(), project, by=by or freezing.who()), "")
    typer.echo(f"Thawed; it was so: {thawed.ended}." if thawed.ended else f"{project or 'Everything'} was not frozen.")
    for one in thawed.still:
        typer.echo(f"Still: {one}.")
    for dag_id, run_id in thawed.started:
        typer.echo(f"{_settings().airflow_url}/dags/{dag_id}/runs/{run_id}")
    if thawed.trouble:
        typer.echo(thawed.trouble, err=True)
    _exit_unless(not thawed.trouble)


@app.command()
def rollback(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option(help="Why; whoever looks at the version reads it.")],
    to: Annotated[str | None, typer.Option(help="The version that is to answer. Default: the one before the newest rollout.")] = None,
    by: Annotated[str | None, typer.Option(help="Who rolls back. Default: the name of your login.")] = None,
) -> None:
    """Take back the rollout in progress, or else the last one, now: the version before it answers everybody again. Also while Airflow is down.

    Doing it again changes nothing. Exit status 1 if serving does not answer with that version within 15 s; it says what serving answers with.
    """
    import os

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # seconds count here, and MLflow's client tries for minutes
    from mlflow.exceptions import MlflowException

    from include.ledger import Busy
    from include.operations.freezing import who
    from include.projects import get_project
    from include.rollout.by_hand import roll_back, what_serving_serves

    found = _or_exit(get_project, project)
    _settings()
    try:
        done = _or_exit(lambda _: roll_back(found, to=to, reason=reason, by=by or who()), project)
    except (Busy, MlflowException) as error:
        _fail(f"not rolled back: {error}\nIf MLflow is away: serving keeps answering as it does, and follows as soon as MLflow is back")
    for note in done.notes:
        typer.echo(note, err=True)
    taken = done.taken_back
    typer.echo(f"{project}: {f'version {taken.version} is taken back' if taken else 'nothing to take back'}; champion is version {done.champion or 'none'}.")
    follows, said = what_serving_serves(found, done.champion)
    typer.echo(f"{said[0].upper()}{said[1:]}.", err=not follows)
    _exit_unless(follows)


@app.command()
def rollout(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    resume: Annotated[bool, typer.Option("--resume", help="Let a paused one go on: you have looked at it.")] = False,
) -> None:
    """Show the rollout in progress or the last one: where it is, and what each look found."""
    from include.operations.freezing import who
    from include.projects import get_project
    from include.rollout import steps
    from include.rollout.document import rollout_document
    from include.rollout.report import paragraph_of

    found = _or_exit(get_project, project)
    _settings()
    if resume and steps.resume(found, by=who()) is None:
        _fail(f"{project}: no rollout is paused")
    document = rollout_document(found)
    if document is None:
        typer.echo(f"{project}: nothing was ever rolled out.")
        return
    typer.echo(paragraph_of(found, document.version, document))
    for look in steps.looks(found, document):
        typer.echo(f"{look['recorded_at']}  {look['subject'].rsplit(', ', 2)[1]}: {look['verdict']}")
        for reason in look["reasons"]:
            typer.echo(f"    {reason}")


@app.command()
def backup(
    archive: Annotated[Path, typer.Argument(help="The file to write, like airloop-2026-01-31.zip. Nothing is overwritten.")],
) -> None:
    """Save what the loop cannot do without: ledger, Feast's registry, MLflow's database; pointers to the tables and hashes of the models' files.

    The loop may run meanwhile. The data itself is not in it: that is for the file system's or the bucket's own backup. Read by its owner only.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from include.operations.archive import ArchiveError
    from include.operations.backup import backup as save
    from include.operations.rows import RowsError
    from include.settings import SettingsError

    try:
        saved = save(_settings(), archive)
    except (ArchiveError, RowsError, SettingsError, SQLAlchemyError) as error:
        _fail(f"no backup was made: {error}")
    for name, held in saved.held.items():
        typer.echo(f"{name}: {held}")
    for line in saved.in_progress:
        typer.echo(f"in progress, and open again after a restore: {line}")
    typer.echo(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="What `airloop backup` wrote.")],
    data_from: Annotated[str | None, typer.Option(help="Copy the projects' data from this data root (a folder, s3://bucket/prefix) first.")] = None,
    artifacts_from: Annotated[str | None, typer.Option(help="... and MLflow's artifacts from here: <home>/mlflow/artifacts, or <data root>/_mlflow.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look whether it can be done.")] = False,
) -> None:
    """Restore a backup into empty stores, also of another kind (SQLite to Postgres). Then everything is frozen: look, and `airloop thaw --all`.

    Refused, by name: a store that is not empty, a damaged archive, another version. Killed in the middle, do it again.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from include.data.storage import StorageUnavailable
    from include.operations.archive import ArchiveError
    from include.operations.moving import MovingError
    from include.operations.restore import RestoreError
    from include.operations.restore import restore as bring_back
    from include.operations.rows import RowsError
    from include.settings import SettingsError
    from include.stack.migrations import MigrationError

    refused = (ArchiveError, RestoreError, MovingError, RowsError, MigrationError, SettingsError, StorageUnavailable, SQLAlchemyError)
    try:
        bring_back(_settings(), archive, data_from=data_from, artifacts_from=artifacts_from, dry_run=dry_run, say=typer.echo)
    except refused as error:
        _fail(f"not restored:\n{error}")


@app.command()
def doctor() -> None:
    """Ask everything whether it is well: settings, disks, databases, stores, servers, DAGs, pools, and whether they belong together.

    Each fault comes with what to do about it. Exit status 1 if there is one.
    """
    from pydantic import ValidationError

    from include.operations.doctor import examine
    from include.operations.doctor.console import show
    from include.settings import SettingsError, get_settings

    console = _terminal()
    try:
        settings = get_settings()
    except (SettingsError, ValidationError) as error:
        from include.operations.doctor.machine import unreadable_settings

        show(console, unreadable_settings(error))
        raise typer.Exit(1) from None
    found = examine(settings, lambda finding: show(console, finding))
    faults = [finding for finding in found if finding.state == "fault"]
    console.print(f"{len(faults)} fault{'' if len(faults) == 1 else 's'} found." if faults else "All is well.", style="bold red" if faults else "bold green")
    _exit_unless(not faults)


@app.command()
def pools(
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Count what the nodes of the cluster (KUBECONFIG) have, instead of AIRLOOP_POOLS.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be set.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print them for `airflow pools import`, and set nothing.")] = False,
) -> None:
    """Set Airflow's pools, one a compute class: a slot a GPU, or a step that needs none. `airloop up` does it from the settings too.

    Do it again after the cluster has grown or shrunk; pools that are full let the steps that run end.
    """
    from include.stack import pools as of

    settings = _settings()
    try:
        slots = of.pools_of_cluster(of.nodes_of_cluster(), of.classes_of_projects()) if from_cluster else of.pools_of_settings(settings)
    except of.PoolsError as error:
        _fail(str(error))
    if as_json:
        typer.echo(of.for_import(slots))
        return
    if not dry_run:
        of.set_pools(settings, slots)
    for name, count in slots.items():
        typer.echo(f"{name}: {count}")


@app.command("kubernetes-secrets")
def kubernetes_secrets(
    namespace: Annotated[str, typer.Option(help="Of MLflow and serving.")] = "airloop",
    airflow_namespace: Annotated[str, typer.Option(help="Of Airflow.")] = "airflow",
    keys: Annotated[Path | None, typer.Option(help="Serving's file of keys, with people's in it; the house's own is put beside them.")] = None,
) -> None:
    """Print the secrets of each part for a cluster, made of the settings: `airloop kubernetes-secrets | kubectl apply -f -`.

    Each part gets what it needs and nothing else. The object store's credentials are those of the settings file or the
    environment, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for one part alone AIRFLOW_AWS_..., MLFLOW_AWS_..., SERVING_AWS_..., TRAINING_AWS_...
    """
    import json
    import os
    import sys

    from include.settings import SettingsError, settings_file
    from include.stack.kubernetes import secrets
    from include.stack.secrets_file import values

    if sys.stdout.isatty():
        _fail("this prints passwords: airloop kubernetes-secrets | kubectl apply -f -")
    try:
        file = settings_file()
        environment = {**(values(file.read_text()) if file else {}), **os.environ}
        items = secrets(_settings(), environment, namespace=namespace, airflow_namespace=airflow_namespace, keys_file=keys)
    except SettingsError as error:
        _fail(str(error))
    typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="As the person logs in.")],
    role: Annotated[Literal["viewer", "editor", "operator", "admin"], typer.Option(help="viewer: reads. editor: also runs. operator: also configures.")],
    email: Annotated[str | None, typer.Option(help="Default: NAME@localhost.")] = None,
) -> None:
    """Make an account, or give the one that is there another role; prints its new password, once."""
    from include.stack import users as of

    typer.echo(_told(of.UsersError, of.add, _settings(), name, role, email))


@users.command("remove")
def remove_user(name: Annotated[str, typer.Argument(help="As the person logs in.")]) -> None:
    """Take an account away; whoever is logged in with it is out within half a minute."""
    from include.stack import users as of

    _told(of.UsersError, of.remove, _settings(), name)


@users.command("list")
def list_users() -> None:
    """Show every account with its roles."""
    from include.stack import users as of

    for user in _told(of.UsersError, of.listed, _settings()):
        typer.echo(f"{user['name']}: {', '.join(user['roles']) or 'no role'}{'' if user['active'] else ' (not active)'} <{user['email']}>")


@users.command("sync")
def sync_users() -> None:
    """Give the account admin the password of AIRLOOP_AIRFLOW_ADMIN_PASSWORD, and the roles their rights. `airloop migrate` does it too.

    Doing it again changes nothing. A changed password ends the account's sessions.
    """
    from include.stack import users as of

    typer.echo(_told(of.UsersError, of.sync, _settings()))


@app.command()
def secrets(
    profile: Annotated[Literal["compose", "kubernetes", "embedded"], typer.Option(help="Whose .env.<profile>.example is filled in.")] = "compose",
    file: Annotated[Path | None, typer.Option(help="Where to; default: what AIRLOOP_ENV_FILE names, else .env in the repository.")] = None,
) -> None:
    """Make the settings file of a profile with a secret of its own in each place, for its owner's eyes only.

    What has a value is never touched: run it again after an upgrade, and it adds what is new.
    """
    from include.settings import usual_settings_file
    from include.stack.secrets_file import SecretsError, make_secrets

    target = file or usual_settings_file()
    try:
        made = make_secrets(profile, target)
    except (OSError, SecretsError) as error:
        _fail(str(error))
    typer.echo(f"{target}: {', '.join(made) if made else 'all secrets were there'}")


@app.command()
def databases() -> None:
    """Make the four databases on Postgres and their users, as the URLs in the settings name them; AIRLOOP_DATABASE_ADMIN_URL says as whom.

    Safe to repeat: what is there stays; a user whose password in the settings has changed gets the new one.
    """
    from include.stack.databases import DatabasesError, make_databases

    try:
        make_databases(_settings(), typer.echo)
    except DatabasesError as error:
        _fail(str(error))


@app.command()
def migrate() -> None:
    """Bring the tables of every store up to this version: ledger, Airflow, MLflow, Feast, studies. `airloop up` does it too.

    However many start it together, each migration runs once; killed in the middle, it can be run again.
    """
    from include.settings import SettingsError
    from include.stack.migrations import MigrationError
    from include.stack.migrations import migrate as run

    try:
        run(_settings(), typer.echo)
    except (MigrationError, SettingsError) as error:
        _fail(str(error))


@app.command()
def materialize(project: Annotated[str, typer.Argument(help="A folder of include/projects.")]) -> None:
    """Fill the online store again with all features of a project: after it has lost its data, or when it is another one now. Safe to repeat."""
    from feast.errors import FeastObjectNotFoundException

    from include.features.build import materialize_anew
    from include.projects import get_project

    found = _or_exit(get_project, project)
    _settings()
    try:
        typer.echo(f"The online store has {project}'s features up to {materialize_anew(found)}.")
    except (FeastObjectNotFoundException, ValueError) as error:
        _fail(f"{error}")


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

    _exit_unless(console.demo(_settings(), _terminal(), months=months, restart=restart))


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

    found = _or_exit(get_project, project)
    upstream = found.module("feed")
    since, until = since.replace(tzinfo=since.tzinfo or UTC), until.replace(tzinfo=until.tzinfo or UTC)
    if bad and bad not in getattr(upstream, "BAD_KINDS", ()):
        _fail(f"{project} has no bad file of kind '{bad}'; there is {', '.join(getattr(upstream, 'BAD_KINDS', ())) or 'none'}")
    try:
        count = upstream.drop(found, since=since, until=until)
        if bad:
            typer.echo(f"bad: {upstream.drop_bad(found, bad, since=since, until=until)}")
    except StorageUnavailable as error:
        _fail(str(error))
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

    _or_exit(get_project, project)
    if stage not in STAGES:
        _fail(f"no stage '{stage}'; there is {', '.join(STAGES)}")
    if stage in {"train", "deploy"}:
        _say_if_frozen(project)
    conf = {"cutoff": ledger.iso(cutoff.replace(tzinfo=cutoff.tzinfo or UTC))} if cutoff else {}
    run_id = AirflowApi.of(_settings()).trigger(f"{project}__{stage}", conf)
    typer.echo(f"{_settings().airflow_url}/dags/{project}__{stage}/runs/{run_id}")


@app.command()
def request(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option(help="Why: first_model, new_data, new_code, or your own word.")] = "person",
    last_days: Annotated[int | None, typer.Option(min=1, help="Train on examples of the newest days only.")] = None,
) -> None:
    """Ask for a retraining: a run of the project's train DAG that writes its request into the ledger. The gate decides."""
    from include.projects import get_project
    from include.stack.api import AirflowApi

    _or_exit(get_project, project)
    _say_if_frozen(project)
    conf = {"reason": reason, **({"last_days": last_days} if last_days else {})}
    run_id = AirflowApi.of(_settings()).trigger(f"{project}__train", conf)
    typer.echo(f"{_settings().airflow_url}/dags/{project}__train/runs/{run_id}")


@app.command()
def export(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    version: Annotated[str | None, typer.Option(help="Of the registered model. Default: the champion.")] = None,
    into: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(),
) -> None:
    """Write a model version as one signed file, for those that cannot call an API: docs/runbooks/edge.md."""
    from include.edge.export import export as write
    from include.projects import get_project

    _settings()
    made = _or_exit(lambda name: write(get_project(name), version, into), project)
    typer.echo(f"{made.bundle}: version {made.version} of {project}. Whoever uses it checks it with {made.public_key}, got from you another way.")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="What `airloop export` wrote.", exists=True, dir_okay=False)],
    key: Annotated[Path, typer.Option(help="The public key, in PEM.", exists=True, dir_okay=False)],
) -> None:
    """Check the signature of an edge bundle, and show what it is. Exit status 2 if it does not hold."""
    import json

    from include.edge.export import verify as check

    typer.echo(json.dumps(_or_exit(lambda _: check(bundle, key), ""), indent=1))


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

    _exit_unless(console.try_it(_settings(), _terminal(), project, stage, rows))


@app.command()
def new_project(
    name: Annotated[str, typer.Argument(help="Small letters, digits and _: the folder's name, and that of DAGs, model and serving address.")],
    kind: Annotated[Literal["binary", "regression"], typer.Option(help="What is predicted: a probability, or a number.")] = "binary",
) -> None:
    """Make a project that works at once: a folder of include/projects and a module of feature_repo.

    Each file says, at each place, what to write instead. A made-up upstream comes with it, so that every stage can be tried first.
    """
    from include.scaffold.new_project import new_project as make

    for path in _or_exit(lambda wanted: make(wanted, kind), name):
        typer.echo(path)
    typer.echo(f"Next: airloop try {name} ingest, and build_features, train, deploy, score, monitor. Then put your own in: docs/adding-a-project.md")


def _one_or_all(project: str | None, everything: bool) -> None:
    if (project is None) != everything:
        _fail("name a project, or say --all")


def _say_if_frozen(project: str) -> None:
    from include import ledger

    if held := ledger.freeze_of(project):
        typer.echo(f"{held}. Until then it waits.", err=True)


def _settings():
    from include.settings import SettingsError, get_settings, hand_on_standard_variables

    try:
        hand_on_standard_variables()
        return get_settings()
    except SettingsError as error:
        _fail(str(error))


def _terminal():
    from rich.console import Console

    return Console(highlight=False)


def _or_exit(find, name: str):
    """What ``find`` gives, or its words and exit status 2."""
    try:
        return find(name)
    except ValueError as error:
        _fail(str(error))


def _told(error, do, *arguments):
    """What ``do`` gives, or the error's words and exit status 2."""
    try:
        return do(*arguments)
    except error as fault:
        _fail(str(fault))


def _fail(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _exit_unless(well: bool) -> None:
    if not well:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
