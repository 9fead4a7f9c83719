"""Act on the page and read it, as a person does."""

import html
import re
import sys
from types import SimpleNamespace

from include.projects import get_project
from include.registry import versions
from include.rollout.document import rollout_document
from include.rollout.manual_rollback import DeploymentSnapshot

PROJECT = get_project("flights")
PAGE = "/airloop-rollout/flights__deploy/"
ROLES = {"vera": "viewer", "eddie": "user", "olga": "op", "ada": "admin"}  # roles of SimpleAuthManager
CUTOFF = "2013-02-01T00:00:00Z"


def token(browser, page: str = PAGE) -> str:
    return html.unescape(re.search(r'name="token" value="([^"]+)"', browser.get(page).text)[1])


def made_token(name: str, project: str = PROJECT.name) -> str:
    """Return the form token that the page would give to this user."""
    seen = DeploymentSnapshot.from_rollout(champion(), rollout_document(PROJECT))
    return sys.modules["airloop_rollout"].make_token(
        SimpleNamespace(get_id=lambda: name), SimpleNamespace(name=project), seen
    )


def act(browser, what: str, headers: dict | None = None, **fields):
    """Fill in a form of the page and submit it, as a browser does."""
    fields = {"token": token(browser), "reason": "it refunds everybody", **fields}
    return browser.post(f"{PAGE}{what}", data=fields, headers=headers or {"Sec-Fetch-Site": "same-origin"})


def champion() -> str | None:
    return versions.aliases(PROJECT).get("champion")


def words(answer) -> str:
    """Return the text that a reader of the page sees."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", answer.text, flags=re.S)))
