"""What happens to a retrain request around its training steps: who is fitted against whom, the gate, and how it ends in the ledger."""

import math
from typing import Any

from upath import UPath

from include import ledger
from include.data import layout
from include.projects.base import Candidate, Project
from include.registry import versions
from include.registry.lost import refuse_lost
from include.training import manifest, page
from include.training.candidates import BASELINE, candidate_of


def judging_basis(project: Project, request: dict[str, Any], training_set: str) -> dict[str, str | None]:
    """References that every step of this request shares.

    They are settled once a request and kept in a file: all steps are judged against the same champion, and a run that is cleared
    weeks later, when there are newer tables and another champion, finds everything as it was and makes nothing new.

    Raises:
        OtherInstallation: the registered model belongs to another installation.
        ChampionLost: the champion is gone from the registry. A model that is judged against the baseline alone must not take its place.
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


def fits_of(project: Project, request: dict[str, Any], basis: dict[str, str | None], compute: str | None = None) -> list[dict[str, str | None]]:
    """Arguments of the fits: each candidate that was asked for and always the baseline; with the parameters that won, where there was a search.

    Args:
        compute: only those that belong to this compute class, perhaps none; None: all.
    """
    fits: list[dict[str, str | None]] = []
    for candidate in (*_asked_for(project, request), BASELINE):
        if compute not in (None, candidate.compute):
            continue
        won = {}
        if candidate.search:
            from include.training import search  # imports Optuna, which only they need

            won = {"parameters": search.conclude(project, request["id"], candidate)}
        fits.append({"candidate": candidate.name, **won, **_shared(basis)})
    return fits


def trials_of(project: Project, request: dict[str, Any], compute: str) -> list[dict[str, str]]:
    """Which trials a compute class runs: the places of each candidate's search that belongs to it."""
    searched = [(c.name, c.search.trials) for c in _asked_for(project, request) if c.search and c.compute == compute]
    return [{"candidate": name, "trial": str(place)} for name, trials in searched for place in range(trials)]


def class_of_best(project: Project, evaluation: str) -> str:
    """The compute class of the candidate that an evaluation found best."""
    return candidate_of(project, manifest.read(evaluation)["candidate"]).compute


def _asked_for(project: Project, request: dict[str, Any]) -> list[Candidate]:
    """The project's candidates, or those that the request's parameter ``candidates`` names."""
    chosen = (request.get("parameters") or {}).get("candidates") or [c.name for c in project.candidates]
    return [candidate_of(project, name) for name in dict.fromkeys(chosen) if name != BASELINE.name]


def _shared(basis: dict[str, str | None]) -> dict[str, str | None]:
    return {k: basis[k] for k in ("request", "training_set", "champion_fitted_until")}


def apply_gate(project: Project, evaluation: str, report: str | UPath) -> str:
    """Judge an evaluation, write the verdict as manifest, page and decision; gives the manifest's URI."""
    found = manifest.read(evaluation)
    verdict = versions.judge_evaluation(project, found)
    ledger.decide(project.name, "gate", found["request"], verdict=verdict.word, reasons=verdict.reasons, cutoff=found["cutoff"])
    rules = [(rule.name, rule.kept, rule.text) for rule in verdict.rules]
    notes = [page.paragraph(found["champion_error"], "no")] if found["champion_error"] else []
    headline = page.paragraph(f"Best candidate {found['candidate']}: {verdict.word}.", "yes" if verdict.passed else "no")
    page.write_page(report, page.page(f"{project.name}: the gate", headline, page.table(["rule", "kept", ""], rows=rules), *notes))
    target = layout.training(project, found["request"]) / "verdict.json"
    content = {"schema": 1, "step": "gate", "request": found["request"], "passed": verdict.passed, "reasons": verdict.reasons, "evaluation": evaluation}
    manifest.write(target, content)
    return str(target)


def settle(project: Project, request: dict[str, Any], version: dict[str, Any], *, dag_run: str) -> None:
    """Write into the ledger how the gate decided. A refused request ends here, and so does the stage.

    A run that has lost its request, to another run or to a deadline, writes nothing there. What deploy wrote stays, too.
    """
    ledger.conclude_training(request["id"], dag_run, version["gate"], **_facts(project, version))
    if version["gate"] == "refused":
        record_training(project, version, dag_run=dag_run)


def record_training(project: Project, version: dict[str, Any], *, dag_run: str) -> None:
    """The stage ``train`` has done all its work for this cutoff."""
    ledger.record_stage(project.name, "train", version["cutoff"], dag_run=dag_run, summary={**version, **_facts(project, version)})


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
        **{who: _numbers(evaluation[of]) for who, of in (("challenger", "challenger"), ("champion", "champion_figures"), ("baseline", "baseline"))},
    }


def _numbers(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """Without NaN, which JSON in a database does not know."""
    return None if figures is None else {name: value if math.isfinite(value) else None for name, value in figures.items()}
