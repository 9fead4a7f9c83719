"""What every request passes first: who asks (``access``). What is let in goes on to the application behind it."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.access import Access
from serving.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
CALLER = "serving.caller"  # in the scope: the caller's name, None for one without a key


class Front:
    """An ASGI application before another one."""

    def __init__(self, application: Application, access: Access) -> None:
        self.application, self.access = application, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the application; it has no websockets
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        try:
            scope[CALLER] = self.access.admit(scope["path"], scope["headers"], scope["client"])
        except Problem as problem:
            await answer(send, problem.status, json.dumps(problem.document()).encode(), "application/problem+json", problem.headers)
            return
        await self.application(scope, receive, send)


async def answer(send: Send, status: int, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
    """Send a whole answer."""
    told = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    told += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})
