"""A project's deployment as an HTML page: champion, rollout, serving, freeze, and forms.

The page has no scripts. Text written by other users (reasons, names) is escaped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from sqlalchemy.exc import SQLAlchemyError

from include import ledger
from include.data.pages import Markup, fill, join
from include.projects.base import Project
from include.registry import versions
from include.registry.lost import Lost, lost_champion
from include.reporting import page
from include.rollout import served
from include.rollout.document import IN_PROGRESS, Rollout, rollout_document
from include.rollout.manual_rollback import DeploymentSnapshot
from include.rollout.report import paragraph_of
from include.rollout.steps import describe, looks
from include.settings import get_settings
from include.times import stamp

# Number of newest versions, looks and decisions shown.
SHOWN = 20
_FORMS = """fieldset{border:1px solid #ddd;border-radius:6px;margin:1rem 0;padding:.6rem 1rem}legend{font-weight:600}
input,select,button{font:inherit;padding:.25rem .5rem;margin-right:.5rem}input{width:26rem;max-width:90%}
fieldset:disabled{color:#777}h2{font-size:1.05rem;margin-top:2rem}"""


@dataclass(frozen=True)
class Overview:
    """The state that the page shows.

    ``frozen`` and ``lately`` come from the ledger. If the ledger is unavailable, ``gap`` says so.
    ``serving_status`` is the status that serving reports.
    """

    champion: str | None
    previous: str | None
    rollout: Rollout | None
    newest: list[ModelVersion]
    serving_status: dict[str, Any]
    frozen: ledger.Freeze | None = None
    looks: list[dict[str, Any]] = field(default_factory=list)
    lately: list[dict[str, Any]] = field(default_factory=list)
    gap: str = ""
    lost: Lost | None = None

    @property
    def seen(self) -> DeploymentSnapshot:
        return DeploymentSnapshot.from_rollout(self.champion, self.rollout)


def overview(project: Project) -> Overview:
    """Return the current state of the deployment.

    Raises:
        MlflowException: the registry does not answer.
    """
    now, rollout = versions.aliases(project), rollout_document(project)
    newest = versions.newest_versions(project, SHOWN) if now or rollout else []
    status = served.ask(get_settings().serving_url, project.name)
    first = (now.get(versions.CHAMPION), now.get(versions.PREVIOUS), rollout, newest, status)
    try:
        decided = [d for d in ledger.decisions(project.name) if d["what"] in ("deploy", "freeze")]
        of_rollout = looks(project, rollout)[-SHOWN:] if rollout else []
        lately = sorted(decided, key=lambda d: d["recorded_at"])[: -SHOWN - 1 : -1]
        return Overview(*first, ledger.freeze_of(project.name), of_rollout, lately, lost=lost_champion(project))
    except (SQLAlchemyError, ledger.LedgerError):
        return Overview(
            *first,
            gap=(
                "The ledger does not answer: whether the project is frozen, and what was decided, cannot be shown."
                " Rolling back works."
            ),
        )


def overview_page(
    project: Project, state: Overview, *, token: str, refusals: Mapping[str, str], messages: list[tuple[str, str]]
) -> Markup:
    """Return the page as HTML.

    Args:
        token: the token embedded in each form and submitted with it.
        refusals: why the reader may not submit a form, by form name. Forms without an entry are
            allowed.
        messages: the results of the user's last action: sentences, each with a kind of
            ``page.paragraph``.
    """
    sections = [page.paragraph(text, kind) for text, kind in messages]
    if state.gap:
        sections.append(page.paragraph(state.gap, "no"))
    if state.lost:
        sections.append(page.paragraph(str(state.lost), "no"))
    sections.append(page.table(["", ""], _facts(project, state)))
    sections.append(fill('<p>As of {}. <a href="./">Look again</a></p>', stamp()))
    sections += _forms(project, state, token, refusals)
    if state.looks:
        of_look = [
            (d["recorded_at"], d["subject"].rsplit(", ", 2)[1], d["verdict"], "; ".join(d["reasons"]))
            for d in reversed(state.looks)
        ]
        sections += [
            fill("<h2>What each look at the rollout found, the newest first</h2>"),
            page.table(["", "look", "", "found"], of_look),
        ]
    if state.lately:
        decided = [
            (d["recorded_at"], d["what"], d["subject"], d["verdict"], "; ".join(d["reasons"])) for d in state.lately
        ]
        sections += [fill("<h2>Lately</h2>"), page.table(["", "", "about", "", "why"], decided)]
    return page.page(f"{project.name}: what is deployed", *sections, style=_FORMS, forms=True)


def _facts(project: Project, state: Overview) -> list[tuple[str, str]]:
    about = {str(version.version): _about(version) for version in state.newest}
    rollout, arms = (
        state.rollout,
        [
            f"{arm['name']} (version {arm.get('version')}, {arm.get('state')})"
            for arm in state.serving_status.get("arms", [])
        ],
    )
    if "unreachable" in state.serving_status:
        serving = f"does not answer: {state.serving_status['unreachable']}"
    else:
        serving = f"answers with version {state.serving_status.get('version')}, {state.serving_status.get('state')}" + (
            f"; beside it {', '.join(arms)}" if arms else ""
        )
        serving += f": {state.serving_status['error']}" if state.serving_status.get("error") else ""
    return [
        (
            "champion",
            (
                f"version {state.champion}{about.get(state.champion, '')}"
                if state.champion
                else "none: nothing is deployed"
            ),
        ),
        ("previous", f"version {state.previous}{about.get(state.previous, '')}" if state.previous else "none"),
        (
            "newest rollout",
            paragraph_of(project, rollout.version, rollout) if rollout else "nothing was ever rolled out",
        ),
        *([("step", _step(project, rollout))] if rollout and rollout.state in ("trying", "paused") else []),
        ("serving", serving),
        ("frozen", str(state.frozen) if state.frozen else "not known" if state.gap else "no"),
    ]


def _about(version: ModelVersion) -> str:
    parts = {"trained on what was known by": version.tags.get("cutoff"), "gate": version.tags.get("gate")}
    return "".join(f", {name} {value}" for name, value in parts.items() if value)


def _step(project: Project, rollout: Rollout) -> str:
    steps = project.rollout.steps
    if rollout.step >= len(steps):
        return "all steps are over"
    counts = (
        f"{rollout.passed} of {steps[rollout.step].looks} looks passed, {rollout.breached} breached,"
        f" {rollout.inconclusive} came to nothing"
    )
    return f"{rollout.step + 1} of {len(steps)}, {describe(steps[rollout.step])}: {counts}"


def _forms(project: Project, state: Overview, token: str, refusals: Mapping[str, str]) -> list[Markup]:
    if state.rollout and state.rollout.state in IN_PROGRESS:
        usual = f"take version {state.rollout.version} out"
    else:
        usual = "take the last rollout back"
    options = [fill('<option value="">{}</option>', usual)]
    for version in state.newest:
        if str(version.version) != state.champion:
            options.append(fill('<option value="{0}">to version {0}{1}</option>', version.version, _about(version)))
    reason = '<input name="reason" required maxlength="500" placeholder="{}" autocomplete="off">'
    choice = fill('<p><select name="to">{}</select></p>' + reason, join(options), "Why? It is shown with the version.")
    forms = [_form("roll_back", "Roll back", choice, token, refusals)]
    if state.frozen and state.frozen.project == project.name:
        waiting = fill("<p>What waits is taken up: requests are trained, a model that had passed is deployed.</p>")
        return [*forms, _form("thaw", "Thaw", waiting, token, refusals)]
    why = fill(
        "<p>Until it is thawed nothing is trained, promoted or rolled out.</p>" + reason,
        "Why? It is shown with the freeze.",
    )
    return [*forms, _form("freeze", "Freeze", why, token, refusals)]


def _form(act: str, words: str, fields: Markup, token: str, refusals: Mapping[str, str]) -> Markup:
    refused = refusals.get(act)
    if refused:
        return fill(
            "<fieldset disabled><legend>{0}</legend>{1}<button>{0}</button><p>{2}</p></fieldset>",
            words,
            fields,
            refused,
        )
    hidden = fill('<input type="hidden" name="token" value="{}">', token)
    return fill(
        '<form method="post" action="{0}"><fieldset><legend>{1}</legend>{2}{3}<button>{1}</button></fieldset></form>',
        act,
        words,
        hidden,
        fields,
    )
