"""/docs is rendered in a real browser, and all of its resources come from the service."""

import re
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from selenium.webdriver.common.by import By

from serving.app import create_app
from serving.settings import Settings
from tests.browser import open_browser
from tests.ports import free_port


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    port = free_port()
    folder = tmp_path_factory.mktemp("serving")
    settings = Settings(
        mlflow_uri=f"sqlite:///{folder}/mlflow.db",
        feature_repo=folder,
        log_root=folder / "store",
        cache=folder / "cache",
    )
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, lifespan="off", log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_is_drawn_and_loads_nothing_from_elsewhere(url, page):
    with open_browser() as browser:
        browser.driver.get(url + page)
        time.sleep(3)
        assert "/models/{name}/predict" in browser.driver.find_element(By.TAG_NAME, "body").text.replace("\u200b", "")
        assert browser.console_errors() == []
        asked = [one for one in browser.quit() if not one.endswith("/favicon.ico")]
    assert {urlsplit(one).netloc for one in asked} == {urlsplit(url).netloc} and len(asked) >= 4


def test_the_page_names_no_other_host_and_has_a_policy(url):
    answer = httpx.get(f"{url}/docs", trust_env=False)
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", answer.text)
    policy = answer.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "script-src 'self' 'sha256-" in policy and "frame-ancestors 'none'" in policy
    )


@pytest.mark.parametrize(
    "name", ["redoc.standalone.js", "..%2fconsts.py", "../consts.py", "%2e%2e/consts.py", "/etc/passwd", ""]
)
def test_no_other_file_of_the_package_is_served(url, name):
    assert httpx.get(f"{url}/docs/assets/{name}", trust_env=False).status_code == 404
