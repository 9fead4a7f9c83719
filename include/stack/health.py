"""Whether a part of the stack does its work: the health check of its container. It takes 50 ms, since it runs every few seconds and imports next to nothing.

python health.py http://127.0.0.1:8080/health [URL ...]        each answers, and not with a server's error
python health.py http://.../api/v2/monitor/health triggerer    and says that this component is healthy
"""

import json
import sys
import urllib.error
import urllib.request


def fault(url: str, component: str | None = None) -> str | None:
    """What is wrong, or None."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            said = answer.read()
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}" if error.code >= 500 else None  # who is asked for a key, or for nothing that is there, is well
    except OSError as error:
        return f"{url} does not answer: {error}"
    if component is None:
        return None
    state = json.loads(said).get(component, {}).get("status")
    return None if state == "healthy" else f"{component} is {state}"


def main(arguments: list[str]) -> int:
    urls, components = [a for a in arguments if "://" in a], [a for a in arguments if "://" not in a]
    wanted: list[str | None] = [*components] or [None]
    faults = [found for url in urls for component in wanted if (found := fault(url, component))]
    print("\n".join(faults), end="")
    return 1 if faults or not urls else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
