"""What serving says it serves."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from include import ledger
from include.settings import get_settings

POLL_S = 0.5
KEY_HINT = "(AIRLOOP_SERVING_API_KEY is the house's own key; serving knows its hash from the file SERVING_KEYS_FILE: docs/runbooks/access.md)"


class NotServed(RuntimeError):
    """Serving does not answer with the version: not in time, or because the model does not load there."""


def wait_until_served(serving_url: str, name: str, version: str, *, timeout_s: float, check: Callable[[], None]) -> dict[str, Any]:
    """Poll serving until it serves a version; gives what serving says about it.

    Args:
        timeout_s: seconds from now.
        check: called between polls; what it raises ends the waiting.

    Raises:
        NotServed: not in time, or serving says that this version does not load; the message says what it said last.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        check()
        said = ask(serving_url, name)
        if stranger := other_installation(said):
            raise NotServed(stranger)
        if str(said.get("version")) == version and said.get("state") == "ready":
            return said
        # "refused" is final for serving; "error" (e.g. the registry is away for a moment) is tried again there, and here.
        if said.get("state") == "refused" and re.search(rf"\bversion {version}\b", str(said.get("error"))):
            raise NotServed(f"serving refuses it: {said['error']}")
        if time.monotonic() > deadline:
            raise NotServed(f"serving did not serve version {version} within {timeout_s:g} s; it says: {json.dumps(said)[:500]}")
        time.sleep(POLL_S)


def other_installation(said: dict[str, Any]) -> str | None:
    """What to say if serving follows another installation's registry: its versions have the same numbers as ours. None: it does not, as far as is known."""
    theirs = said.get("installation")
    ours = ledger.known_installation() if theirs else None
    if not theirs or not ours or theirs == ours:
        return None
    where = get_settings().serving_url
    return f"serving at {where} follows the registry of installation {theirs}, this one is {ours}: mend AIRLOOP_SERVING_URI or AIRLOOP_SERVING_PORT"


def credentials() -> dict[str, str]:
    """The headers with which the house calls serving: its key, where the settings have one."""
    key = get_settings().serving_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def ask(serving_url: str, name: str) -> dict[str, Any]:
    """``GET /models/<name>``; a service that does not answer, or an answer that is no JSON object, is said in ``unreachable``."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{serving_url}/models/{name}", headers=credentials()), timeout=5) as response:
            said = json.load(response)
    except urllib.error.HTTPError as error:
        hint = f" {KEY_HINT}" if error.code in (401, 403) else ""
        return {"unreachable": f"HTTP {error.code}: {error.read(300).decode(errors='replace')}{hint}"}
    except (OSError, ValueError) as error:
        return {"unreachable": str(error)}
    return said if isinstance(said, dict) else {"unreachable": f"not an object: {str(said)[:200]}"}
