"""What serving says it serves."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

POLL_S = 0.5


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
        if str(said.get("version")) == version and said.get("state") == "ready":
            return said
        # "refused" is final for serving; "error" (e.g. the registry is away for a moment) is tried again there, and here.
        if said.get("state") == "refused" and re.search(rf"\bversion {version}\b", str(said.get("error"))):
            raise NotServed(f"serving refuses it: {said['error']}")
        if time.monotonic() > deadline:
            raise NotServed(f"serving did not serve version {version} within {timeout_s:g} s; it says: {json.dumps(said)[:500]}")
        time.sleep(POLL_S)


def ask(serving_url: str, name: str) -> dict[str, Any]:
    """``GET /models/<name>``; a service that does not answer, or an answer that is no JSON object, is said in ``unreachable``."""
    try:
        with urllib.request.urlopen(f"{serving_url}/models/{name}", timeout=5) as response:
            said = json.load(response)
    except urllib.error.HTTPError as error:
        return {"unreachable": f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"}
    except (OSError, ValueError) as error:
        return {"unreachable": str(error)}
    return said if isinstance(said, dict) else {"unreachable": f"not an object: {str(said)[:200]}"}
