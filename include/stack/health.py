"""Health check of a container: check whether a part of the stack works.

It runs every few seconds. Therefore it imports very little and takes 50 ms.

python health.py http://127.0.0.1:8080/health [URL ...]        it answers without a server error
python health.py http://.../api/v2/monitor/health triggerer    also, this component is healthy
"""

import json
import sys
import urllib.error
import urllib.request


def fault(url: str, component: str | None = None) -> str | None:
    """Return what is wrong, or None if all is well."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            body = response.read()
    except urllib.error.HTTPError as error:
        # A missing key or an unknown path (4xx) is not a failure of the server.
        return f"{url} answers {error.code}" if error.code >= 500 else None
    except OSError as error:
        return f"{url} does not answer: {error}"
    if component is None:
        return None
    state = json.loads(body).get(component, {}).get("status")
    return None if state == "healthy" else f"{component} is {state}"


def main(arguments: list[str]) -> int:
    urls, components = [a for a in arguments if "://" in a], [a for a in arguments if "://" not in a]
    wanted: list[str | None] = [*components] or [None]
    faults = [problem for url in urls for component in wanted if (problem := fault(url, component))]
    print("\n".join(faults), end="")
    return 1 if faults or not urls else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
