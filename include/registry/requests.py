"""The steps of a retrain request around training: selecting fits, the gate, ledger entries."""

import math
from typing import Any

from upath import UPath

from include import ledger
from include.data import layout
from include.projects.base import Candidate, Project
from include.registry import versions
from include.registry.lost import refuse_lost
from include.reporting import page
from include.training import manifest
from include.training.candidates import BASELINE, candidate_of


def judging_basis(project: Project, request: dict[str, Any], training_set: str) -> dict[str, str | None]:
    """Return the references that every step of this request shares.

    They are determined once for each request and stored in a file, so all steps are judged against
    the same champion. A run that is cleared weeks later, when there are newer tables and another
    champion, finds everything unchanged and creates nothing new.

    Raises:
        OtherInstallationError: the registered model belongs to another installation.
        ChampionLostError: the champion is gone from the registry. A model that is judged only
            against the baseline must not replace it.
    """
    target = layout.training(project, request["id"]) / "basis.json"
    try:
        return manifest.read(target)
    except FileNotFoundError:
        pass
    versions.refuse_other_installation(project)  # before hours of fitting
    champion = versions.champion(project)
    if champion is None:
        refuse_lost(project)
    basis = {
        "request": request["id"],
        "training_set": training_set,
        "champion": f"models:/{project.name}/{champion.version}" if champion else None,
        "champion_fitted_until": champion.tags["fitted_until"] if champion else None,
    }
    manifest.write(target, basis)
    return basis


def fits_of(
    project: Project, request: dict[str, Any], basis: dict[str, str | None], compute: str | None = None
) -> list[dict[str, str | None]]:
    """Return the arguments of the fits: each requested candidate, and always the baseline.

    After a search, they include the parameters that won.

    Args:
        compute: only fits of this compute class, perhaps none. None: all.
    """
    fits: list[dict[str, str | None]] = []
    for candidate in (*_asked_for(project, request), BASELINE):
        if compute not in (None, candidate.compute):
            continue
        won = {}
        if candidate.search:
            from include.training import search  # imports Optuna, which only these fits need

            won = {"parameters": search.conclude(project, request["id"], candidate)}
        fits.append({"candidate": candidate.name, **won, **_shared(basis)})
    return fits


def trials_of(project: Project, request: dict[str, Any], compute: str) -> list[dict[str, str]]:
    """Return the trials that a compute class runs: the places of its candidates' searches."""
    searched = [(c.name, c.search.trials) for c in _asked_for(project, request) if c.search and c.compute == compute]
    return [{"candidate": name, "trial": str(place)} for name, trials in searched for place in range(trials)]


def class_of_best(project: Project, evaluation: str) -> str:
    """Return the compute class of the best candidate of an evaluation."""
    return candidate_of(project, manifest.read(evaluation)["candidate"]).compute


def _asked_for(project: Project, request: dict[str, Any]) -> list[Candidate]:
    """Return the project's candidates, or those in the request's parameter ``candidates``."""
    chosen = (request.get("parameters") or {}).get("candidates") or [c.name for c in project.candidates]
    return [candidate_of(project, name) for name in dict.fromkeys(chosen) if name != BASELINE.name]


def _shared(basis: dict[str, str | None]) -> dict[str, str | None]:
    return {k: basis[k] for k in ("request", "training_set", "champion_fitted_until")}


def apply_gate(project: Project, evaluation: str, report: str | UPath) -> str:
    """Judge an evaluation, and write the verdict as manifest, page and decision.

    Return the manifest's URI.
    """
    result = manifest.read(evaluation)
    verdict = versions.judge_evaluation(project, result)
    ledger.decide(
        project.name, "gate", result["request"], verdict=verdict.word, reasons=verdict.reasons, cutoff=result["cutoff"]
    )
    rules = [(rule.name, rule.kept, rule.text) for rule in verdict.rules]
    notes = [page.paragraph(result["champion_error"], "no")] if result["champion_error"] else []
    headline = page.paragraph(
        f"Best candidate {result['candidate']}: {verdict.word}.", "yes" if verdict.passed else "no"
    )
    page.write_page(
        report, page.page(f"{project.name}: the gate", headline, page.table(["rule", "kept", ""], rows=rules), *notes)
    )
    target = layout.training(project, result["request"]) / "verdict.json"
    content = {
        "schema": 1,
        "step": "gate",
        "request": result["request"],
        "passed": verdict.passed,
        "reasons": verdict.reasons,
        "evaluation": evaluation,
    }
    manifest.write(target, content)
    return str(target)


def settle(project: Project, request: dict[str, Any], version: dict[str, Any], *, dag_run: str) -> None:
    """Record the gate's verdict in the ledger. A refused request ends here, and so does the stage.

    A run that has lost its request, to another run or to a deadline, writes nothing there. The
    entries of deploy are kept too.
    """
    ledger.conclude_training(request["id"], dag_run, version["gate"], **_facts(project, version))
    if version["gate"] == "refused":
        record_training(project, version, dag_run=dag_run)


def record_training(project: Project, version: dict[str, Any], *, dag_run: str) -> None:
    """Record that the stage ``train`` has done all its work for this cutoff."""
    ledger.record_stage(
        project.name, "train", version["cutoff"], dag_run=dag_run, summary={**version, **_facts(project, version)}
    )


def _facts(project: Project, version: dict[str, Any]) -> dict[str, Any]:
    folder = layout.training(project, version["request"])
    verdict = manifest.read(folder / "verdict.json")
    evaluation = manifest.read(verdict["evaluation"])
    return {
        "version": version["version"],
        "gate": version["gate"],
        "reasons": verdict["reasons"],
        "candidate": version["candidate"],
        "fits": evaluation["fits"],
        "judged_rows": evaluation["judged_rows"],
        **{
            who: _numbers(evaluation[of])
            for who, of in (("challenger", "challenger"), ("champion", "champion_figures"), ("baseline", "baseline"))
        },
    }


def _numbers(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """Replace NaN by None, because a database's JSON does not support NaN."""
    return (
        None if figures is None else {name: value if math.isfinite(value) else None for name, value in figures.items()}
    )
