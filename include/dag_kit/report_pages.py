"""Show a task's report in a logged-in browser without trusting its content.

A report may contain text from untrusted sources. Each response is therefore sandboxed. Its origin
is opaque, so it cannot access the reader's login or Airflow's page. Its policy prevents it from
loading or sending anything. HTML is put into a frame within our own page. The policy of that page
applies to the frame too, and it keeps the report from navigating to another host. A policy on the
report itself cannot do that. See ADR 45.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from include.data.pages import Markup, fill, policy

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HASH = re.compile(r"sha(256-[A-Za-z0-9+/]{43}=|384-[A-Za-z0-9+/]{64}|512-[A-Za-z0-9+/]{86}==)")
# Types that a browser shows without running code. All other types are downloaded.
SHOWN = frozenset(
    {"application/json", "image/gif", "image/jpeg", "image/png", "image/webp", "text/csv", "text/html", "text/plain"}
)
FRAME = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title>
<style>html,body{{height:100%;margin:0}}iframe{{display:block;border:0;width:100%;height:100%}}</style>
<iframe title="Report" sandbox="allow-scripts allow-downloads" srcdoc="{}"></iframe></html>
"""
MESSAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<body style="font: 15px/1.5 system-ui, sans-serif; color: #555; padding: 3em; max-width: 40em; margin: auto">
<h1 style="font-size: 1.2em; color: #222">{title}</h1>{body}</body></html>
"""


def headers(scripts: Sequence[str] = ()) -> dict[str, str]:
    """Return the headers of a response whose page may run the inline scripts with these hashes."""
    return {
        "Content-Security-Policy": f"sandbox allow-scripts allow-downloads; {policy(scripts)}; frame-ancestors 'self'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "SAMEORIGIN",
        "X-DNS-Prefetch-Control": "off",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=(), clipboard-read=(), clipboard-write=()",
        # A task that runs again overwrites its report.
        "Cache-Control": "private, no-cache",
    }


def scripts_of(content: bytes | None) -> list[str]:
    """Return the script hashes that are stored next to a page.

    Entries that are not a hash are dropped, so that no other text gets into a header.
    """
    try:
        hashes = json.loads(content or b"[]")
    except ValueError:
        return []
    return [one for one in hashes if isinstance(one, str) and HASH.fullmatch(one)] if isinstance(hashes, list) else []


def framed(report: bytes) -> Markup:
    """Return our page with the report in a frame."""
    return fill(FRAME, report.decode("utf-8", errors="replace"))


def message(title: str, body: Markup) -> Markup:
    return fill(MESSAGE, title=title, body=body)


def with_headers(app: Callable[..., Awaitable[None]], added: dict[str, str]) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that adds these headers to all responses.

    This includes responses of its framework. A header that a response already has is kept.
    """
    lines = [(name.lower().encode(), value.encode()) for name, value in added.items()]

    async def guarded(scope: Scope, receive: Any, send: Send) -> None:
        async def complete(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                own = list(event.get("headers", ()))
                names = {name.lower() for name, _ in own}
                event = {**event, "headers": [*own, *(line for line in lines if line[0] not in names)]}
            await send(event)

        await app(scope, receive, complete)

    return guarded
