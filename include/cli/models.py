"""Commands for deployed models, deployment itself, and models for edge devices."""

from pathlib import Path
from typing import Annotated

import typer

from include.cli.exits import (
    Json,
    exit_on,
    exit_unless,
    fail,
    mlflow_or_exit,
    project_or_exit,
    say,
    say_json,
    settings_or_exit,
    stated,
)

app = typer.Typer()
MLFLOW_UNAVAILABLE = "If MLflow is away: serving keeps answering as it does, and follows as soon as MLflow is back"


@app.command()
def rollout(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume a paused rollout after you have examined it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the current or last rollout: its state, and the result of each look."""
    from dataclasses import asdict

    from include.operations.freezing import who
    from include.rollout import steps
    from include.rollout.document import rollout_document
    from include.rollout.report import paragraph_of

    definition = project_or_exit(project)
    mlflow_or_exit()
    if resume and steps.resume(definition, by=who()) is None:
        fail(f"{project}: no rollout is paused")
    document = rollout_document(definition)
    if as_json:
        say_json(
            {
                "rollout": asdict(document) if document else None,
                "looks": steps.looks(definition, document) if document else [],
            }
        )
        return
    if document is None:
        say(f"{project}: nothing was ever rolled out.")
        return
    say(paragraph_of(definition, document.version, document))
    for look in steps.looks(definition, document):
        say(f"{look['recorded_at']}  {look['subject'].rsplit(', ', 2)[1]}: {look['verdict']}")
        for reason in look["reasons"]:
            say(f"    {reason}")


@app.command()
def rollback(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    reason: Annotated[
        str, typer.Option("--reason", "--why", callback=stated, help="Reason, which is shown with the version.")
    ],
    to: Annotated[
        str | None, typer.Option(help="Version to restore. Default: the version before the newest rollout.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Name to record. Default: your login name.")] = None,
) -> None:
    """Roll back the current rollout, or else the last one. Also works while Airflow is down.

    The previous version then answers all requests again. Running the command again changes nothing.
    Exit status 1 if serving does not answer with that version within 15 s. The command reports
    which version serving uses.
    """
    from mlflow.exceptions import MlflowException

    from include.ledger import LockTimeoutError
    from include.operations.freezing import who
    from include.rollout.manual_rollback import roll_back, wait_for_served_version

    definition = project_or_exit(project)
    mlflow_or_exit(note=MLFLOW_UNAVAILABLE)
    try:
        with exit_on(ValueError):
            done = roll_back(definition, to=to, reason=reason, by=by or who())
    except (LockTimeoutError, MlflowException) as error:
        fail(f"not rolled back: {error}\n{MLFLOW_UNAVAILABLE}")
    for note in done.notes:
        say(note, err=True)
    taken = done.taken_back
    say(
        f"{project}: {f'version {taken.version} is taken back' if taken else 'nothing to take back'}; champion is"
        f" version {done.champion or 'none'}."
    )
    follows, message = wait_for_served_version(definition, done.champion)
    say(f"{message[0].upper()}{message[1:]}.", err=not follows)
    exit_unless(follows)


@app.command("restore-champion")
def restore_champion(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    reason: Annotated[
        str, typer.Option("--reason", "--why", callback=stated, help="Reason, which is shown with the version.")
    ],
    version: Annotated[
        str | None,
        typer.Option(
            help="Version to make champion. Default: the lost one, which is registered again if it was deleted."
        ),
    ] = None,
    give_up: Annotated[
        bool,
        typer.Option(
            "--give-up", help="Continue without the lost champion. The next model is compared only with the baseline."
        ),
    ] = False,
    by: Annotated[str | None, typer.Option(help="Name to record. Default: your login name.")] = None,
) -> None:
    """Restore a champion that was deleted in MLflow, or whose alias was removed.

    `airloop doctor` reports whether a champion is lost. A deleted version is registered again,
    under a new number, from the files that training wrote. Its golden requests are tested first.
    """
    from include.ledger import LockTimeoutError
    from include.operations.freezing import who
    from include.registry import lost
    from include.rollout.manual_rollback import wait_for_served_version
    from include.rollout.restoring import restore_champion as restore

    definition = project_or_exit(project)
    mlflow_or_exit(note=MLFLOW_UNAVAILABLE)
    if give_up:
        gone = lost.lost_champion(definition)
        if gone is None:
            fail(f"{project} has lost no champion")
        lost.give_up(definition, gone, by=by or who(), reason=reason)
        say(f"{project} goes on without version {gone.version}: the next model that beats the baseline is deployed.")
        return
    try:
        with exit_on(ValueError):
            done = restore(definition, reason=reason, by=by or who(), version=version)
    except LockTimeoutError as error:
        fail(f"not restored: {error}")
    again = (
        f" (a new version of the files of version {done.was})" if done.version != done.was and version is None else ""
    )
    say(f"{project}: champion is version {done.version}{again}.")
    follows, message = wait_for_served_version(definition, done.version)
    say(f"{message[0].upper()}{message[1:]}.", err=not follows)
    exit_unless(follows)


@app.command()
def adopt(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    reason: Annotated[
        str, typer.Option("--reason", "--why", callback=stated, help="Reason, which is recorded in the ledger.")
    ],
    by: Annotated[str | None, typer.Option(help="Name to record. Default: your login name.")] = None,
) -> None:
    """Make this installation the owner of a registered model.

    Use it after the ledger was lost, or when a model moves to this installation. The previous owner
    can then no longer change the model.
    """
    from include import ledger
    from include.operations.freezing import who
    from include.registry import versions

    definition = project_or_exit(project)
    mlflow_or_exit()
    before = versions.own_model(definition)
    ledger.decide(
        project,
        "adopt",
        f"from {before or 'nobody'}",
        verdict="adopted",
        reasons=[f"{by or who()}: {reason}"],
        cutoff=ledger.now(project),
    )
    say(
        f"Model {project} belongs to installation {ledger.installation()}; before, it was"
        f" {f'that of {before}' if before else 'without an owner'}."
    )


@app.command()
def freeze(
    reason: Annotated[
        str,
        typer.Option(
            "--reason", "--why", callback=stated, help="Reason, which is shown wherever the freeze stops work."
        ),
    ],
    project: Annotated[str | None, typer.Argument(help="Name of the project (its folder in include/projects).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Freeze all projects, including future ones.")] = False,
    by: Annotated[str | None, typer.Option(help="Name to record. Default: your login name.")] = None,
) -> None:
    """Suspend training, promotion and rollout until `airloop thaw`.

    Ingest, features, scores, serving and monitoring continue. Retrain requests wait. Tasks that are
    running finish, but no later step begins. A rollout that has begun is completed.
    """
    from include.operations import freezing

    _one_or_all(project, everything)
    with exit_on(ValueError):
        held, new = freezing.freeze(project, by=by or freezing.who(), why=reason)
    say(f"{held}." if new else f"It was frozen already, and that stays: {held}.")


@app.command()
def thaw(
    project: Annotated[str | None, typer.Argument(help="Name of the project (its folder in include/projects).")] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="End the freeze of all projects. Projects that were frozen individually stay frozen."
        ),
    ] = False,
    by: Annotated[str | None, typer.Option(help="Name to record. Default: your login name.")] = None,
) -> None:
    """End a freeze and resume the pending work.

    Waiting requests are trained. A model that had passed the gate is deployed.
    """
    from include.operations import freezing

    _one_or_all(project, everything)
    with exit_on(ValueError):
        thawed = freezing.thaw(settings_or_exit(), project, by=by or freezing.who())
    say(f"Thawed; it was so: {thawed.ended}." if thawed.ended else f"{project or 'Everything'} was not frozen.")
    for one in thawed.still:
        say(f"Still: {one}.")
    for dag_id, run_id in thawed.started:
        say(f"{settings_or_exit().airflow_url}/dags/{dag_id}/runs/{run_id}")
    if thawed.trouble:
        say(thawed.trouble, err=True)
    exit_unless(not thawed.trouble)


@app.command()
def export(
    project: Annotated[str, typer.Argument(help="Name of the project (its folder in include/projects).")],
    version: Annotated[str | None, typer.Option(help="Version of the registered model. Default: the champion.")] = None,
    into: Annotated[Path, typer.Option(help="Folder to write the bundle to.")] = Path(),
) -> None:
    """Write a model version as one signed file, for devices that cannot call an API.

    See docs/runbooks/edge.md.
    """
    from include.edge.export import export as write
    from include.projects import get_project

    mlflow_or_exit()
    with exit_on(ValueError):
        exported = write(get_project(project), version, into)
    say(
        f"{exported.bundle}: version {exported.version} of {project}. Whoever uses it checks it with"
        f" {exported.public_key}, got from you another way."
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle that `airloop export` wrote.", exists=True, dir_okay=False)],
    key: Annotated[Path, typer.Option(help="File with the public key in PEM format.", exists=True, dir_okay=False)],
) -> None:
    """Check the signature of an edge bundle and show its content.

    Exit status 2 if it is invalid.
    """
    import json

    from include.edge.export import verify as check

    with exit_on(ValueError):
        content = check(bundle, key)
    say(json.dumps(content, indent=1))


def _one_or_all(project: str | None, everything: bool) -> None:
    if (project is None) != everything:
        fail("name a project, or say --all")
