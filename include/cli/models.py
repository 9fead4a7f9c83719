"""What is deployed, what may be, and models for elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from include.cli.exits import Json, exit_unless, fail, mlflow_or_exit, or_exit, say, say_json, settings_or_exit

app = typer.Typer()
AWAY = "If MLflow is away: serving keeps answering as it does, and follows as soon as MLflow is back"


@app.command()
def rollout(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    resume: Annotated[bool, typer.Option("--resume", help="Let a paused one go on: you have looked at it.")] = False,
    as_json: Json = False,
) -> None:
    """Show the rollout in progress or the last one: where it is, and what each look found."""
    from dataclasses import asdict

    from include.operations.freezing import who
    from include.projects import get_project
    from include.rollout import steps
    from include.rollout.document import rollout_document
    from include.rollout.report import paragraph_of

    found = or_exit(get_project, project)
    mlflow_or_exit()
    if resume and steps.resume(found, by=who()) is None:
        fail(f"{project}: no rollout is paused")
    document = rollout_document(found)
    if as_json:
        say_json({"rollout": asdict(document) if document else None, "looks": steps.looks(found, document) if document else []})
        return
    if document is None:
        say(f"{project}: nothing was ever rolled out.")
        return
    say(paragraph_of(found, document.version, document))
    for look in steps.looks(found, document):
        say(f"{look['recorded_at']}  {look['subject'].rsplit(', ', 2)[1]}: {look['verdict']}")
        for reason in look["reasons"]:
            say(f"    {reason}")


@app.command()
def rollback(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option("--reason", "--why", help="Why; whoever looks at the version reads it.")],
    to: Annotated[str | None, typer.Option(help="The version that is to answer. Default: the one before the newest rollout.")] = None,
    by: Annotated[str | None, typer.Option(help="Who rolls back. Default: the name of your login.")] = None,
) -> None:
    """Take back the rollout in progress, or else the last one, now: the version before it answers everybody again. Also while Airflow is down.

    Doing it again changes nothing. Exit status 1 if serving does not answer with that version within 15 s; it says what serving answers with.
    """
    from mlflow.exceptions import MlflowException

    from include.ledger import Busy
    from include.operations.freezing import who
    from include.projects import get_project
    from include.rollout.by_hand import roll_back, what_serving_serves

    found = or_exit(get_project, project)
    mlflow_or_exit(note=AWAY)
    try:
        done = or_exit(lambda _: roll_back(found, to=to, reason=reason, by=by or who()), project)
    except (Busy, MlflowException) as error:
        fail(f"not rolled back: {error}\n{AWAY}")
    for note in done.notes:
        say(note, err=True)
    taken = done.taken_back
    say(f"{project}: {f'version {taken.version} is taken back' if taken else 'nothing to take back'}; champion is version {done.champion or 'none'}.")
    follows, said = what_serving_serves(found, done.champion)
    say(f"{said[0].upper()}{said[1:]}.", err=not follows)
    exit_unless(follows)


@app.command("restore-champion")
def restore_champion(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option("--reason", "--why", help="Why; whoever looks at the version reads it.")],
    version: Annotated[str | None, typer.Option(help="The version that is to be champion. Default: the lost one, registered again if it was deleted.")] = None,
    give_up: Annotated[bool, typer.Option("--give-up", help="Go on without: the next model is judged against the baseline alone.")] = False,
    by: Annotated[str | None, typer.Option(help="Who does it. Default: the name of your login.")] = None,
) -> None:
    """Bring back a champion that somebody deleted in MLflow, or whose alias was taken away. `airloop doctor` says if one is lost.

    A deleted version is registered again, under a new number, from the files that training wrote. Its golden requests are tested first.
    """
    from include.ledger import Busy
    from include.operations.freezing import who
    from include.projects import get_project
    from include.registry import lost
    from include.rollout.by_hand import what_serving_serves
    from include.rollout.restoring import restore_champion as restore

    found = or_exit(get_project, project)
    mlflow_or_exit(note=AWAY)
    if give_up:
        gone = lost.lost_champion(found)
        if gone is None:
            fail(f"{project} has lost no champion")
        lost.give_up(found, gone, by=by or who(), reason=reason)
        say(f"{project} goes on without version {gone.version}: the next model that beats the baseline is deployed.")
        return
    try:
        done = or_exit(lambda _: restore(found, reason=reason, by=by or who(), version=version), project)
    except Busy as error:
        fail(f"not restored: {error}")
    again = f" (a new version of the files of version {done.was})" if done.version != done.was and version is None else ""
    say(f"{project}: champion is version {done.version}{again}.")
    follows, said = what_serving_serves(found, done.version)
    say(f"{said[0].upper()}{said[1:]}.", err=not follows)
    exit_unless(follows)


@app.command()
def adopt(
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    reason: Annotated[str, typer.Option("--reason", "--why", help="Why; it is kept in the ledger.")],
    by: Annotated[str | None, typer.Option(help="Who does it. Default: the name of your login.")] = None,
) -> None:
    """Make a registered model this installation's own: after its ledger was lost, or when a model moves here. The other one cannot change it any more."""
    from include import ledger
    from include.operations.freezing import who
    from include.projects import get_project
    from include.registry import versions

    found = or_exit(get_project, project)
    mlflow_or_exit()
    before = versions.own_model(found)
    ledger.decide(
        project, "adopt", f"from {before or 'nobody'}", verdict="adopted", reasons=[f"{by or who()}: {reason}"], cutoff=ledger.now(project)
    )  # fmt: skip
    say(f"Model {project} belongs to installation {ledger.installation()}; before, it was {f'that of {before}' if before else 'without an owner'}.")


@app.command()
def freeze(
    reason: Annotated[str, typer.Option("--reason", "--why", help="Why; whoever meets the freeze reads it.")],
    project: Annotated[str | None, typer.Argument(help="A folder of include/projects.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All projects, also those to come.")] = False,
    by: Annotated[str | None, typer.Option(help="Who freezes. Default: the name of your login.")] = None,
) -> None:
    """Have nothing trained, promoted or rolled out, until `airloop thaw`. Ingest, features, scores, serving and monitoring go on.

    Retrain requests wait. What runs at this moment ends, and what would come after it does not begin; a rollout that has begun is brought to its end.
    """
    from include.operations import freezing

    _one_or_all(project, everything)
    held, new = or_exit(lambda _: freezing.freeze(project, by=by or freezing.who(), why=reason), "")
    say(f"{held}." if new else f"It was frozen already, and that stays: {held}.")


@app.command()
def thaw(
    project: Annotated[str | None, typer.Argument(help="A folder of include/projects.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="End the freeze of all. Projects that were frozen each for itself stay frozen.")] = False,
    by: Annotated[str | None, typer.Option(help="Who thaws. Default: the name of your login.")] = None,
) -> None:
    """End a freeze and have taken up what waited: requests are trained, a model that had passed the gate is deployed."""
    from include.operations import freezing

    _one_or_all(project, everything)
    thawed = or_exit(lambda _: freezing.thaw(settings_or_exit(), project, by=by or freezing.who()), "")
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
    project: Annotated[str, typer.Argument(help="A folder of include/projects.")],
    version: Annotated[str | None, typer.Option(help="Of the registered model. Default: the champion.")] = None,
    into: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(),
) -> None:
    """Write a model version as one signed file, for those that cannot call an API: docs/runbooks/edge.md."""
    from include.edge.export import export as write
    from include.projects import get_project

    mlflow_or_exit()
    made = or_exit(lambda name: write(get_project(name), version, into), project)
    say(f"{made.bundle}: version {made.version} of {project}. Whoever uses it checks it with {made.public_key}, got from you another way.")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="What `airloop export` wrote.", exists=True, dir_okay=False)],
    key: Annotated[Path, typer.Option(help="The public key, in PEM.", exists=True, dir_okay=False)],
) -> None:
    """Check the signature of an edge bundle, and show what it is. Exit status 2 if it does not hold."""
    import json

    from include.edge.export import verify as check

    say(json.dumps(or_exit(lambda _: check(bundle, key), ""), indent=1))


def _one_or_all(project: str | None, everything: bool) -> None:
    if (project is None) != everything:
        fail("name a project, or say --all")
