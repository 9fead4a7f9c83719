"""The services on this machine or a cluster, and what they need before they start: settings, databases, pools, accounts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from include.cli.exits import Json, airflow_or_exit, exit_unless, fail, or_exit, say, say_json, settings_or_exit, terminal

app = typer.Typer()


@app.command()
def up(
    systemd: Annotated[bool, typer.Option("--systemd", help="Print unit files for systemd that run the same services, and start nothing.")] = False,
) -> None:
    """Start what does not run (Airflow, MLflow, serving), wait until each answers, print addresses and login.

    A service that dies later is restarted, unless AIRLOOP_RESTART is false.

    Doing it again is harmless: only what is missing is started. State lies under AIRLOOP_HOME (data/ in the repository); ports are
    AIRLOOP_AIRFLOW_PORT, AIRLOOP_MLFLOW_PORT and AIRLOOP_SERVING_PORT. When a port is taken, nothing is started.
    """
    from include.stack import console
    from include.stack.systemd import UnitError, units

    if systemd:
        try:
            made = units(settings_or_exit())
        except UnitError as error:
            fail(str(error))
        say("\n".join(f"# /etc/systemd/system/{name}\n{content}" for name, content in made.items()))
        return
    exit_unless(console.up(settings_or_exit(), terminal()))


@app.command()
def down() -> None:
    """Stop everything that `airloop up` started, and whatever those processes started. Data stays."""
    from include.stack import console

    console.down(settings_or_exit(), terminal())


@app.command()
def status(
    project: Annotated[str | None, typer.Argument(help="A folder of include/projects. Default: the services of this machine.")] = None,
    as_json: Json = False,
) -> None:
    """Show each service: whether it answers, its process, its address. Exit status 1 unless all of them answer.

    Of a project: its champion, the last cutoff of each stage, requests with their next step, paused DAGs, failed runs. Exit status 1 if a person is needed.
    """
    from include.stack import console

    if project is not None:
        _project_status(project, as_json)
        return
    if not as_json:
        exit_unless(console.status(settings_or_exit(), terminal()))
        return
    from dataclasses import asdict

    from include import ledger
    from include.projects import broken_projects
    from include.stack import lifecycle

    lines = lifecycle.status(settings_or_exit())
    broken = [str(one) for one in broken_projects()]
    say_json({"services": [asdict(line) for line in lines], "freezes": [str(one) for one in ledger.freezes()], "broken_projects": broken})
    exit_unless(all(line.state == "answering" for line in lines) and not broken)


def _project_status(name: str, as_json: bool) -> None:
    from include.operations.console import show_project
    from include.operations.project_status import project_status
    from include.projects import get_project
    from include.registry.client import quick

    found = or_exit(get_project, name)
    settings = settings_or_exit()
    with quick():
        said = project_status(settings, found)
    if as_json:
        say_json(said.document())
    else:
        show_project(said, say)
    exit_unless(said.well)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Ask everything whether it is well: settings, disks, databases, stores, servers, DAGs, pools, and whether they belong together.

    Each fault comes with what to do about it. Exit status 1 if there is one.
    """
    from pydantic import ValidationError

    from include.operations.doctor import examine
    from include.operations.doctor.console import show
    from include.settings import SettingsError, get_settings

    console = terminal()
    try:
        settings = get_settings()
    except (SettingsError, ValidationError) as error:
        from include.operations.doctor.machine import unreadable_settings

        if as_json:
            say_json([unreadable_settings(error)._asdict()])
        else:
            show(console, unreadable_settings(error))
        raise typer.Exit(1) from None
    found = examine(settings, lambda finding: None if as_json else show(console, finding))
    faults = [finding for finding in found if finding.state == "fault"]
    if as_json:
        say_json([finding._asdict() for finding in found])
        exit_unless(not faults)
        return
    console.print(f"{len(faults)} fault{'' if len(faults) == 1 else 's'} found." if faults else "All is well.", style="bold red" if faults else "bold green")
    exit_unless(not faults)


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
        fail(str(error))
    say(f"{target}: {', '.join(made) if made else 'all secrets were there'}")


@app.command("kubernetes-secrets")
def kubernetes_secrets(
    namespace: Annotated[str, typer.Option(help="Of MLflow and serving.")] = "airloop",
    airflow_namespace: Annotated[str, typer.Option(help="Of Airflow.")] = "airflow",
    keys: Annotated[Path | None, typer.Option(help="Serving's file of keys, with people's keys in it. The keys of Airloop itself are added.")] = None,
    training_namespace: Annotated[bool, typer.Option(help="Print the training namespace too, with its Pod Security labels.")] = True,
) -> None:
    """Print the training namespace and the secrets of each part for a cluster: `airloop kubernetes-secrets | kubectl apply -f -`.

    Each part gets what it needs and nothing else. The object store's credentials are those of the settings file or the
    environment, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for one part alone AIRFLOW_AWS_..., MLFLOW_AWS_..., SERVING_AWS_..., TRAINING_AWS_...
    """
    import json
    import os
    import sys

    from include.settings import SettingsError, settings_file
    from include.stack import kubernetes
    from include.stack.secrets_file import values

    if sys.stdout.isatty():
        fail("this prints passwords: airloop kubernetes-secrets | kubectl apply -f -")
    try:
        file = settings_file()
        environment = {**(values(file.read_text()) if file else {}), **os.environ}
        settings = settings_or_exit()
        items = kubernetes.secrets(settings, environment, namespace=namespace, airflow_namespace=airflow_namespace, keys_file=keys)
    except SettingsError as error:
        fail(str(error))
    first = [kubernetes.training_namespace(settings)] if training_namespace else []
    say(json.dumps({"apiVersion": "v1", "kind": "List", "items": [*first, *items]}))


@app.command()
def databases() -> None:
    """Make the four databases on Postgres and their users, as the URLs in the settings name them; AIRLOOP_DATABASE_ADMIN_URL says as whom.

    Safe to repeat: what is there stays; a user whose password in the settings has changed gets the new one.
    """
    from include.stack.databases import DatabasesError, make_databases

    try:
        make_databases(settings_or_exit(), say)
    except DatabasesError as error:
        fail(str(error))


@app.command()
def migrate() -> None:
    """Bring the tables of every store up to this version: ledger, Airflow, MLflow, Feast, studies. `airloop up` does it too.

    However many start it together, each migration runs once; killed in the middle, it can be run again.
    """
    from include.settings import SettingsError
    from include.stack.migrations import MigrationError
    from include.stack.migrations import migrate as run

    try:
        run(settings_or_exit(), say)
    except (MigrationError, SettingsError) as error:
        fail(str(error))


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

    settings = settings_or_exit()
    try:
        slots = of.pools_of_cluster(of.nodes_of_cluster(), of.classes_of_projects()) if from_cluster else of.pools_of_settings(settings)
    except of.PoolsError as error:
        fail(str(error))
    if as_json:
        say(of.for_import(slots))
        return
    if not dry_run:
        airflow_or_exit()
        of.set_pools(settings, slots)
    for name, count in slots.items():
        say(f"{name}: {count}")
