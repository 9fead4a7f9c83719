"""Apply the controller's rules to the ledger: decisions, drift episodes and retrain requests.

A run uses only the history strictly before its cutoff, so a rerun finds the same and changes
nothing. A decision is final, except if it is made again at the same cutoff with more labels. A run
for a time before the last decision is recorded, but does not open or close episodes and does not
request anything.
"""

from datetime import datetime
from typing import Any

from include import ledger
from include.ledger import Request, moment
from include.monitoring.controller import NAN, DriftVerdict, Episode, Evidence, decide
from include.projects.base import Project
from include.registry.lost import lost_champion
from include.times import stamp

STAGE = "monitor"
NO_CHAMPION, LOST = "no champion", "champion lost"
REASONS = ("drift", "age")  # of the requests that are written here


def decide_retraining(
    project: Project, cutoff: str, performance: dict[str, Any] | None, drift: dict[str, Any] | None, *, dag_run: str
) -> dict[str, Any]:
    """Judge the evidence, record the verdict, and write a retrain request if needed.

    Args:
        project: the champion's project.
        cutoff: the run's cutoff, in the format of ``ledger.iso``.
        performance: the result of ``measure_champion``, or None if there is no champion.
        drift: the result of ``report_drift``, if available.
        dag_run: the run that decides.

    Returns:
        The summary of the stage that the ledger stores: ``state``, ``asked``, ``reasons``,
            ``request``, ``labels``, ``metric``, ``ci``, ``reference``, ``bias``, ``bias_ci``,
            ``drifted_share``, ``version``, ``figures``.
    """
    recorded = ledger.stage_record(project.name, STAGE, cutoff)
    if recorded and recorded["summary"].get("labels", 0) >= (performance or {}).get("labels", 0):
        decided: dict[str, Any] = recorded["summary"]
        return decided

    summary: dict[str, Any] = {
        "state": NO_CHAMPION,
        "asked": False,
        "reasons": ["no champion is deployed yet"],
        "request": None,
        "labels": 0,
    }
    if performance is None and (gone := lost_champion(project)):
        # Do not request anything, because a new model would be judged only against the baseline.
        # Operators are notified once a day.
        summary |= {"state": LOST, "reasons": [str(gone)]}
        ledger.note(project.name, f"champion lost: version {gone.version}, {cutoff[:10]}", str(gone))
    if performance is not None:
        share = (drift or {}).get("share")
        summary |= {
            k: performance[k]
            for k in ("labels", "predictions", "version", "metric", "ci", "reference", "bias", "bias_ci", "figures")
        }
        verdict, episode = _verdict(project, cutoff, _evidence(performance, share))
        late = any(d["cutoff"] > cutoff for d in ledger.decisions(project.name, STAGE))
        request = None if late else _apply(project, cutoff, verdict, episode, summary, dag_run)
        reasons = [*verdict.reasons, *(["a later cutoff was judged already: nothing is asked for"] if late else [])]
        if verdict.closes and not late:
            reasons.append(
                f"the episode of {episode['opened']} is closed: {verdict.closes}" if episode else verdict.closes
            )
        summary |= {
            "state": verdict.state,
            "asked": request is not None,
            "reasons": reasons,
            "request": request,
            "drifted_share": share,
        }
    ledger.decide(project.name, STAGE, cutoff, verdict=summary["state"], reasons=summary["reasons"], cutoff=cutoff)
    ledger.record_stage(project.name, STAGE, cutoff, dag_run=dag_run, summary=summary)
    return summary


def unclaimed_request(project: Project) -> Request | None:
    """Return the oldest request that a run of ``train`` may take up now.

    It is a new request, or one whose event was lost. In a frozen project all requests wait, and the
    result is None.
    """
    if ledger.freeze_of(project.name):
        return None
    at = stamp()
    return next((r for r in ledger.requests(project.name) if r.state == "open" and (r.not_before or at) <= at), None)


def _verdict(project: Project, cutoff: str, evidence: Evidence) -> tuple[DriftVerdict, dict[str, Any] | None]:
    """Return the verdict by the history strictly before the cutoff, with the episode open then."""
    requests = ledger.requests(project.name)
    episode = _open_before(project, cutoff)
    known = None
    if episode:
        asked = [r.state for r in requests if r.episode == episode["id"] and r.cutoff < cutoff]
        known = Episode(moment(episode["opened"]), asked[-1] if asked else None, episode["evidence"].get("ask", 1))
    # Includes requests of users or the schedule at the same cutoff, but not those that an earlier
    # run of this decision made.
    earlier = [r for r in requests if r.cutoff < cutoff or (r.cutoff == cutoff and r.reason not in REASONS)]
    answered = [r for r in earlier if r.state != "failed"]
    verdict = decide(
        project.retrain,
        project.metric,
        evidence,
        at=moment(cutoff),
        last_request=_newest(earlier),
        last_answer=_newest(answered),
        episode=known,
    )
    return verdict, episode


def _newest(requests: list[Request]) -> datetime | None:
    return max((moment(r.cutoff) for r in requests), default=None)


def _open_before(project: Project, cutoff: str) -> dict[str, Any] | None:
    open_then = [
        e
        for e in ledger.episodes(project.name)
        if e["opened"] < cutoff and (e["closed"] is None or e["closed"] >= cutoff)
    ]
    return open_then[-1] if open_then else None


def _apply(
    project: Project,
    cutoff: str,
    verdict: DriftVerdict,
    episode: dict[str, Any] | None,
    summary: dict[str, Any],
    dag_run: str,
) -> str | None:
    """Close or open an episode and request a retraining. Return the request's id, or None.

    Each step is safe to repeat, so a retry completes a killed run.
    """
    current = ledger.current_episode(project.name)
    if verdict.closes and episode and current and current["id"] == episode["id"]:
        ledger.close_episode(project.name, at=cutoff)
    subject = episode["id"] if episode else None
    if verdict.opens:
        evidence: dict[str, Any] = {
            k: summary[k] for k in ("version", "labels", "metric", "ci", "reference", "bias", "bias_ci")
        }
        evidence |= {"reasons": list(verdict.reasons), "ask": 1}
        if verdict.continues and episode:
            evidence |= {"continues": episode["id"], "ask": episode["evidence"].get("ask", 1) + 1}
        subject = ledger.open_episode(project.name, at=cutoff, evidence=evidence)
    if not verdict.ask:
        return None
    if verdict.tell:
        ledger.note(
            project.name,
            f"drift asked in vain, {cutoff}",
            f"drift lasts, and {'; '.join(verdict.reasons)}. It goes on asking, ever more seldom",
        )
    episode_asked = subject if verdict.cause == "drift" else None
    return ledger.request_retraining(
        project.name, cutoff=cutoff, reason=verdict.cause, asked_by=dag_run, episode=episode_asked
    ).id


def _evidence(performance: dict[str, Any], share: float | None) -> Evidence:
    def number(value: float | None) -> float:
        return NAN if value is None else value

    (low, high), (bias_low, bias_high) = performance["ci"], performance["bias_ci"]
    return Evidence(
        labels=performance["labels"],
        metric=number(performance["metric"]),
        metric_low=number(low),
        metric_high=number(high),
        reference=number(performance["reference"]),
        bias=number(performance["bias"]),
        bias_low=number(bias_low),
        bias_high=number(bias_high),
        drifted_share=number(share),
        champion_cutoff=moment(performance["champion_cutoff"]),
    )
