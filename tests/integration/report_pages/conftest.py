"""Airflow's own app with the plugins on a real port, a browser, and a foreign host.

The browser is logged in as an admin. The foreign host must not receive anything.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest
import uvicorn
from selenium.common.exceptions import NoSuchElementException, NoSuchFrameException
from selenium.webdriver.common.by import By

from include.data import layout
from include.projects import get_project
from tests.browser import Browser, open_browser
from tests.integration.rollout_page.conftest import airflow, as_, deployed, registry  # noqa: F401
from tests.ports import free_port

DAG, RUN, TASK = "flights__monitor", "manual__2013-02-01T00:00:00+00:00", "detect"
PATH = f"/airloop/report/{DAG}/{quote(RUN)}/{TASK}/"
# Frames plugin pages as Airflow's UI does.
UI_FRAME = (
    '<!doctype html><iframe sandbox="allow-scripts allow-same-origin allow-forms allow-downloads" src="{}" width="1200"'
    ' height="1500"></iframe>'
)


class Listener:
    """A foreign host that accepts connections on its own port and keeps the received bytes."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.settimeout(1)
            # Chromium opens a connection before each navigation, even one that the policy then
            # forbids. It sends nothing on it.
            with suppress(OSError):
                self.heard += filter(None, [connection.recv(2000)])
            connection.close()

    def close(self) -> None:
        self._socket.close()


@dataclass
class Site:
    """Airflow's API server and a record of its requests.

    The record holds the method, the path, and whether the login cookie was sent.
    """

    url: str
    asked: list[tuple[str, str, bool]] = field(default_factory=list)
    framed: str = ""

    def asked_with_login(self, *, but: tuple[str, ...]) -> list[str]:
        return [
            f"{method} {path}"
            for method, path, login in self.asked
            if login and not path.startswith((*but, "/favicon", "/ui-frame"))
        ]


def _recorded(app: Callable, site: Site) -> Callable:
    async def recorded(scope, receive, send):
        if scope["type"] == "http":
            if scope["path"] == "/ui-frame":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
                await send({"type": "http.response.body", "body": site.framed.encode()})
                return
            login = any(name == b"cookie" and b"_token=" in value for name, value in scope["headers"])
            site.asked.append((scope["method"], scope["path"], login))
        await app(scope, receive, send)

    return recorded


@pytest.fixture(scope="package")
def site(airflow):  # noqa: F811
    port = free_port()
    site = Site(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(
        uvicorn.Config(_recorded(airflow, site), host="127.0.0.1", port=port, lifespan="off", log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield site
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def token(airflow):  # noqa: F811
    """Return the login token of an admin."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="ada", role="ADMIN"))


@pytest.fixture(scope="package")
def shared_browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def browser(request, site, token):
    """Start a browser logged in as an admin.

    All tests share one, because starting takes two seconds. With the indirect parameter "own" the
    test gets its own browser, to read its network log.
    """
    with (
        open_browser()
        if getattr(request, "param", "shared") == "own"
        else nullcontext(request.getfixturevalue("shared_browser"))
    ) as browser:
        browser.driver.get("about:blank")
        browser.driver.delete_all_cookies()
        browser.log_in(site.url, token)
        browser.console_errors()
        site.asked.clear()
        yield browser


@pytest.fixture
def folder(fresh_store):
    """Return the folder of the report at ``PATH``."""
    return layout.report(get_project("flights"), DAG, RUN, TASK)


@dataclass
class Opened:
    """What a page showed: the text of each of its frames, and the console errors."""

    text: str
    errors: list[str]
    ran: bool


@pytest.fixture
def open_page(browser: Browser, site):
    """Return a function that opens a page, waits, and returns its text and errors.

    ``open_page(path)`` opens it at its address or in the frame of Airflow's UI.
    """

    def open_page(path: str, *, wait_s: float = 0, in_ui: bool = False) -> Opened:
        site.framed = UI_FRAME.format(path)
        browser.console_errors()
        browser.driver.get(f"{site.url}/ui-frame" if in_ui else f"{site.url}{path}")
        time.sleep(wait_s)
        texts, ran = _frames(browser.driver)
        browser.driver.switch_to.default_content()
        return Opened("\n".join(texts), browser.console_errors(), ran)

    return open_page


def _frames(driver) -> tuple[list[str], bool]:
    """Return the text of the frame and its descendants, and whether a hostile script ran."""
    try:
        texts, ran = (
            [driver.find_element(By.TAG_NAME, "body").text],
            bool(driver.execute_script("return window.__xss || false")),
        )
    except NoSuchElementException:
        return [], False
    for number in range(len(driver.find_elements(By.TAG_NAME, "iframe"))):
        try:
            driver.switch_to.frame(number)
        # The frame was blocked, or the page removed it.
        except NoSuchFrameException:
            continue
        below, also = _frames(driver)
        texts, ran = texts + below, ran or also
        driver.switch_to.parent_frame()
    return texts, ran
