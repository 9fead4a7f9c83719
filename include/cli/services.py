"""Commands for the services on this machine or on a cluster, and for their prerequisites.

The prerequisites are settings, databases, pools and accounts.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from include.cli.exits import (
    Json,
    airflow_or_exit,
    exit_unless,
    fail,
    project_or_exit,
    say,
    say_json,
    settings_or_exit,
    terminal,
)

app = typer.Typer()


@app.command()
def up(
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print systemd unit files for the same services, and start nothing.")
    ] = False,
) -> None:
    """Start missing services, wait until each answers, print addresses and login.

    The services are Airflow, MLflow and serving. A service that dies later is restarted, unless
    AIRLOOP_RESTART is false.

    Running the command again is safe: only missing services are started. State is stored under
    AIRLOOP_HOME (data/ in the repository). The ports are AIRLOOP_AIRFLOW_PORT, AIRLOOP_MLFLOW_PORT
    and AIRLOOP_SERVING_PORT. If a port is in use, nothing is started.
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
    """Stop all processes that `airloop up` started, and their child processes. Data is kept."""
    from include.stack import console

    console.down(settings_or_exit(), terminal())


@app.command()
def status(
    project: Annotated[
        str | None, typer.Argument(help="Name of a project. Default: show the services of this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the state, process and address of each service, or the state of one project.

    Exit status 1 unless all services answer.

    For a project: the champion, the last cutoff of each stage, requests with their next step,
    paused DAGs and failed runs. Exit status 1 if an operator must intervene.
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
    say_json(
        {
            "services": [asdict(line) for line in lines],
            "freezes": [str(one) for one in ledger.freezes()],
            "broken_projects": broken,
        }
    )
    exit_unless(all(line.state == "answering" for line in lines) and not broken)


def _project_status(name: str, as_json: bool) -> None:
    from include.operations.console import show_project
    from include.operations.project_status import project_status
    from include.registry.client import quick

    project = project_or_exit(name)
    settings = settings_or_exit()
    with quick():
        status = project_status(settings, project)
    if as_json:
        say_json(status.document())
    else:
        show_project(status, say)
    exit_unless(status.well)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check settings, disks, databases, stores, servers, DAGs and pools, and their consistency.

    Each fault is shown together with its fix. Exit status 1 if there is a fault.
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
    findings = examine(settings, lambda finding: None if as_json else show(console, finding))
    faults = [finding for finding in findings if finding.state == "fault"]
    if as_json:
        say_json([finding._asdict() for finding in findings])
        exit_unless(not faults)
        return
    console.print(
        f"{len(faults)} fault{'' if len(faults) == 1 else 's'} found." if faults else "All is well.",
        style="bold red" if faults else "bold green",
    )
    exit_unless(not faults)


@app.command()
def init_env(
    profile: Annotated[
        Literal["compose", "kubernetes", "embedded"],
        typer.Option(help="Profile whose .env.<profile>.example is filled in."),
    ] = "compose",
    file: Annotated[
        Path | None, typer.Option(help="File to write. Default: AIRLOOP_ENV_FILE, or .env in the repository.")
    ] = None,
) -> None:
    """Create the settings file of a profile with generated secrets, readable only by its owner.

    Existing values are never changed. Run it again after an upgrade to add new secrets.
    """
    from include.settings import usual_settings_file
    from include.stack.accounts.secrets_file import SecretsError, make_secrets

    target = file or usual_settings_file()
    try:
        made = make_secrets(profile, target)
    except (OSError, SecretsError) as error:
        fail(str(error))
    say(f"{target}: {', '.join(made) if made else 'all secrets exist already'}")


@app.command("kubernetes-secrets")
def kubernetes_secrets(
    namespace: Annotated[str, typer.Option(help="Namespace of MLflow and serving.")] = "airloop",
    airflow_namespace: Annotated[str, typer.Option(help="Namespace of Airflow.")] = "airflow",
    keys: Annotated[
        Path | None,
        typer.Option(help="Serving's key file with the keys of other callers. Airloop's own keys are added."),
    ] = None,
    training_namespace: Annotated[
        bool, typer.Option(help="Print the training namespace too, with its Pod Security labels.")
    ] = True,
) -> None:
    """Print a cluster's training namespace and the secrets of each part.

    Use it as `airloop kubernetes-secrets | kubectl apply -f -`.

    Each part gets only the secrets that it needs. The object store's credentials come from the
    settings file or the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for one part
    alone AIRFLOW_AWS_..., MLFLOW_AWS_..., SERVING_AWS_..., TRAINING_AWS_...
    """
    import json
    import os
    import sys

    from include.settings import SettingsError, settings_file
    from include.stack import kubernetes
    from include.stack.accounts.secrets_file import values

    if sys.stdout.isatty():
        fail("this prints passwords: airloop kubernetes-secrets | kubectl apply -f -")
    try:
        file = settings_file()
        environment = {**(values(file.read_text()) if file else {}), **os.environ}
        settings = settings_or_exit()
        items = kubernetes.secrets(
            settings, environment, namespace=namespace, airflow_namespace=airflow_namespace, keys_file=keys
        )
    except SettingsError as error:
        fail(str(error))
    first = [kubernetes.training_namespace(settings)] if training_namespace else []
    say(json.dumps({"apiVersion": "v1", "kind": "List", "items": [*first, *items]}))


@app.command()
def create_databases() -> None:
    """Create the four Postgres databases and their users, as named in the settings' URLs.

    The command connects with AIRLOOP_DATABASE_ADMIN_URL. Safe to repeat: existing databases and
    users stay. If a user's password in the settings has changed, the user gets the new one.
    """
    from include.stack.stores.databases import DatabasesError, make_databases

    try:
        make_databases(settings_or_exit(), say)
    except DatabasesError as error:
        fail(str(error))


@app.command()
def migrate() -> None:
    """Migrate the tables of every store to this version.

    The stores are ledger, Airflow, MLflow, Feast and studies. `airloop up` does this too. If
    several processes start it concurrently, each migration still runs once. If it is killed, run it
    again.
    """
    from include.settings import SettingsError
    from include.stack.stores.migrations import MigrationError
    from include.stack.stores.migrations import migrate as run

    try:
        run(settings_or_exit(), say)
    except (MigrationError, SettingsError) as error:
        fail(str(error))


@app.command()
def sync_pools(
    from_cluster: Annotated[
        bool,
        typer.Option(
            "--from-cluster",
            help="Count the resources of the cluster's nodes (KUBECONFIG), instead of using AIRLOOP_POOLS.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the pools, and change nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the pools as JSON for `airflow pools import`, and change nothing.")
    ] = False,
) -> None:
    """Create or resize one Airflow pool per compute class.

    GPU classes get one slot per GPU. Other classes get one slot per concurrent step. `airloop up`
    also sets the pools, from the settings. Run this again after the cluster has grown or shrunk. If
    a pool is over its new size, running steps still finish.
    """
    from include.stack.stores.pools import (
        PoolsError,
        classes_of_projects,
        for_import,
        nodes_of_cluster,
        pools_of_cluster,
        pools_of_settings,
        set_pools,
    )

    settings = settings_or_exit()
    try:
        slots = (
            pools_of_cluster(nodes_of_cluster(), classes_of_projects()) if from_cluster else pools_of_settings(settings)
        )
    except PoolsError as error:
        fail(str(error))
    if as_json:
        say(for_import(slots))
        return
    if not dry_run:
        airflow_or_exit()
        set_pools(settings, slots)
    for name, count in slots.items():
        say(f"{name}: {count}")
