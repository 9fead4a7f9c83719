"""Query the status of models in serving."""

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
KEY_HINT = (
    "(AIRLOOP_SERVING_API_KEY is the house's own key; serving knows its hash from the file SERVING_KEYS_FILE:"
    " docs/runbooks/access.md)"
)


class NotServedError(RuntimeError):
    """Raised when serving does not serve the version in time or cannot load the model."""


def wait_until_served(
    serving_url: str, name: str, version: str, *, timeout_s: float, check: Callable[[], None]
) -> dict[str, Any]:
    """Poll serving until it serves a version. Return the status that serving reports.

    Args:
        timeout_s: seconds from now.
        check: called between polls. An exception that it raises ends the wait.

    Raises:
        NotServedError: the timeout expired, or serving reports that this version does not load. The
            message contains the last status.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        check()
        status = ask(serving_url, name)
        if stranger := other_installation(status):
            raise NotServedError(stranger)
        if str(status.get("version")) == version and status.get("state") == "ready":
            return status
        # "refused" is final in serving. After "error" (for example, the registry is briefly
        # unavailable) serving tries again, and so does this loop.
        if status.get("state") == "refused" and re.search(rf"\bversion {version}\b", str(status.get("error"))):
            raise NotServedError(f"serving refuses it: {status['error']}")
        if time.monotonic() > deadline:
            raise NotServedError(
                f"serving did not serve version {version} within {timeout_s:g} s; it says: {json.dumps(status)[:500]}"
            )
        time.sleep(POLL_S)


def other_installation(status: dict[str, Any]) -> str | None:
    """Return an error message if serving follows another installation's registry.

    Its versions have the same numbers as those of this installation. Return None if serving follows
    this registry, or if that cannot be determined.
    """
    theirs = status.get("installation")
    ours = ledger.known_installation() if theirs else None
    if not theirs or not ours or theirs == ours:
        return None
    where = get_settings().serving_url
    return (
        f"serving at {where} follows the registry of installation {theirs}, this one is {ours}: mend"
        " AIRLOOP_SERVING_URI or AIRLOOP_SERVING_PORT"
    )


def credentials() -> dict[str, str]:
    """Return the headers for calls to serving: the deployment's API key, if one is set."""
    key = get_settings().serving_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def ask(serving_url: str, name: str) -> dict[str, Any]:
    """Return the response of ``GET /models/<name>``.

    If the service does not answer, or the answer is not a JSON object, the key ``unreachable`` has
    the reason.
    """
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{serving_url}/models/{name}", headers=credentials()), timeout=5
        ) as response:
            content = json.load(response)
    except urllib.error.HTTPError as error:
        hint = f" {KEY_HINT}" if error.code in (401, 403) else ""
        return {"unreachable": f"HTTP {error.code}: {error.read(300).decode(errors='replace')}{hint}"}
    except (OSError, ValueError) as error:
        return {"unreachable": str(error)}
    return content if isinstance(content, dict) else {"unreachable": f"not an object: {str(content)[:200]}"}
