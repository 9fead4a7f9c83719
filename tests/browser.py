"""Provide a real browser for tests of pages: Debian's Chromium, driven by Selenium.

Chromium's network log records every request that leaves the browser, from any frame or process.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REQUIRED = "AIRLOOP_TEST_BROWSER"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--window-size=1280,1600",
    # Disable name resolution, so that a test cannot reach another host.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
NO_PAGE = "not an origin"
# Console errors that our pages do not cause.
NOT_OURS = ("favicon.ico",)


def find_browser() -> tuple[str, str]:
    """Return the paths of Chromium and its driver.

    Skip the test if one of them is missing, or fail it if ``AIRLOOP_TEST_BROWSER=required`` is set,
    as in CI.
    """
    paths = [shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")]
    if all(paths):
        return str(paths[0]), str(paths[1])
    missing = "this test needs Chromium and its driver; install them: apt-get install chromium chromium-driver"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{missing} ({REQUIRED}=required)")
    pytest.skip(missing)


class Browser:
    """One Chromium with an empty profile.

    Attributes:
        driver: Selenium's driver.
    """

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        chromium, driver = find_browser()
        self._net_log = folder / "net-log.json"
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={self._net_log}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(executable_path=driver))
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(30)

    def log_in(self, origin: str, token: str) -> None:
        """Set Airflow's login cookie, as Airflow's login page does."""
        self.driver.get(f"{origin}/static/nothing")
        self.driver.add_cookie({"name": "_token", "value": token, "path": "/", "sameSite": "Lax", "httpOnly": True})

    def console_errors(self) -> list[str]:
        """Return the console errors since the last call."""
        lines = self.driver.get_log("browser")
        return [
            line["message"]
            for line in lines
            if line["level"] == "SEVERE" and not any(name in line["message"] for name in NOT_OURS)
        ]

    def quit(self) -> list[str]:
        """Close the browser and return the URLs of all requests of a page, in order.

        This includes requests that led to a page. Chromium's own requests (time, updates) are left
        out: their initiator is None.
        """
        self.driver.quit()
        events = json.loads(self._net_log.read_text())
        start = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        requests = [event.get("params", {}) for event in events["events"] if event["type"] == start]
        asked = [
            one["url"]
            for one in requests
            if one.get("url") and (one.get("initiator", NO_PAGE) != NO_PAGE or "127.0.0.1" in one["url"])
        ]
        return [url for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser with an empty profile and close it afterwards."""
    find_browser()
    with tempfile.TemporaryDirectory(prefix="browser") as folder:
        browser = Browser(Path(folder))
        try:
            yield browser
        finally:
            browser.driver.quit()
