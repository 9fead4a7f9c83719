"""Serve the API's documentation at ``/docs``.

The page's scripts come from this service (package fastapi-offline). Its policy allows no other
sources.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, RedirectResponse, Response

from serving.problems import ProblemError

ASSETS: Final = Path(fastapi_offline.__file__).parent / "static"
SERVED: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def add_docs(app: FastAPI) -> None:
    """Add the pages to an application without its own (``docs_url=None, redoc_url=None``).

    The page uses relative addresses, so that it works behind a proxy that adds a path prefix.
    """
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon.png",
    )
    content = bytes(page.body)
    headers = HEADERS | {"Content-Security-Policy": _policy(content.decode())}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(content, media_type="text/html", headers=headers)

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> Response:
        """Redirect to ``/docs``. Redoc would load its logo from another host."""
        return RedirectResponse("docs")

    @app.get("/docs/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in SERVED:
            raise ProblemError(404, "http", "Not Found", "no such path")
        return FileResponse(
            ASSETS / name, media_type=SERVED[name], headers=HEADERS | {"Cache-Control": "max-age=86400"}
        )


def _policy(page: str) -> str:
    """Return the page's policy: its inline scripts by their hashes, all else from this service."""
    scripts = [
        base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()
        for one in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    ]
    hashes = " ".join(f"'sha256-{one}'" for one in scripts)
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
