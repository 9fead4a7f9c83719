"""Values are text: no script in a cell, name, reason or tag runs, and the reader sees the text."""

import re
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.integration.report_pages import producers
from tests.integration.report_pages.conftest import PATH
from tests.integration.report_pages.producers import PRODUCERS
from tests.integration.rollout_page.browsing import act

pytestmark = [pytest.mark.timeout(600)]
MARK = "zq"
HOSTILE = (
    f"{MARK}<img src=x onerror=window.__xss=1;fetch('HOST/')>",
    f"{MARK}</script><script>window.__xss=1</script><!--<script>",
    (
        f"{MARK}\" onmouseover=window.__xss=1 x='' autofocus onfocus=window.__xss=1 a=\"</title></style></iframe><svg"
        " onload=window.__xss=1>"
    ),
    (
        f"{MARK}&lt;img src=x onerror=window.__xss=1&gt;</td></table><a"
        ' href="javascript:window.__xss=1">x</a>{{7*7}}${7*7}$x$$'
    ),
)
# Resources that a page loads. The browser fetches an address in src, href and similar attributes of
# these elements without a click.
LOADS = re.compile(
    r"<(?:script|link|img|iframe|source|video|audio|object|embed|input|image|use)\b[^>]*?\b(?:src|href|data|poster)\s*=\s*[\"']?\s*(?:https?:)?//",
    re.I,
)


@pytest.mark.parametrize("hostile", HOSTILE, ids=["handler", "script", "attribute", "entities"])
@pytest.mark.parametrize("name", PRODUCERS)
def test_hostile_text_is_shown_and_does_nothing(name, hostile, deployed, open_page, browser, site, listener, folder):
    text = hostile.replace("HOST", listener.url)
    if name == "rollout":
        producers.hostile_registry(text)
    PRODUCERS[name](text, folder)
    page = (folder / "index.html").read_text()
    # Without the plugin's policy and the page's own policy: escaping alone must suffice.
    bare = folder / "bare.html"
    bare.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page))
    browser.driver.get(f"file://{bare}")
    assert browser.driver.execute_script("return window.__xss || null") is None
    assert not browser.driver.execute_script(
        "return document.querySelector('[onerror],[onload],[onfocus],[onmouseover],a[href^=\"javascript\" i]')"
    )
    opened = open_page(PATH, wait_s=1.5 if name == "drift" else 0.3)
    assert not opened.ran and MARK in opened.text and opened.errors == []
    # "performance" shows the text only in a plot, and "drift" abbreviates it.
    if name not in ("performance", "drift"):
        assert hostile.replace("HOST", listener.url)[:40].split("\n")[0] in opened.text
    assert listener.heard == [] and site.asked_with_login(but=("/airloop/report",)) == []
    assert LOADS.findall(page.partition("window.drawDashboard")[0][:200_000] if name == "drift" else page) == []


@pytest.mark.parametrize("hostile", HOSTILE, ids=["handler", "script", "attribute", "entities"])
@pytest.mark.parametrize("in_ui", [False, True])
def test_the_rollout_page_shows_hostile_text_and_does_nothing(
    hostile, in_ui, deployed, open_page, site, listener, monkeypatch
):
    text = hostile.replace("HOST", listener.url)
    producers.hostile_registry(text)
    monkeypatch.setattr(
        deployed,
        "says",
        lambda project: {
            "version": text,
            "state": text,
            "error": text,
            "arms": [{"name": text, "version": text, "state": text}],
        },
    )
    opened = open_page("/airloop-rollout/flights__deploy/", in_ui=in_ui, wait_s=0.5)
    assert not opened.ran and opened.errors == [] and text[:30] in opened.text and listener.heard == []
    assert site.asked_with_login(but=("/airloop-rollout",)) == []


def test_a_users_name_is_text_on_the_rollout_page(as_, monkeypatch):
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    monkeypatch.setattr(SimpleAuthManagerUser, "get_name", lambda self: "<script>1</script>\x1b[2J")
    done = act(as_("olga"), "freeze", reason="<b>x</b>\x1b]0;x\x07 audit")
    assert (
        done.status_code == 200 and "<script>1" not in done.text and "<b>x" not in done.text and "\x1b" not in done.text
    )


def test_the_forms_of_the_rollout_page_work_within_its_sandbox(deployed, open_page, browser, site):
    open_page("/airloop-rollout/flights__deploy/", in_ui=True)
    driver = browser.driver
    driver.switch_to.frame(0)
    form = driver.find_element(By.CSS_SELECTOR, 'form[action="freeze"]')
    form.find_element(By.NAME, "reason").send_keys("an audit")
    form.find_element(By.TAG_NAME, "button").click()
    # The previous page still exists when the click returns, and may disappear while its text is
    # read.
    waiting = WebDriverWait(driver, 30, ignored_exceptions=[StaleElementReferenceException])
    waiting.until(lambda _: "by ada in the UI: an audit" in driver.find_element(By.TAG_NAME, "body").text)


@pytest.mark.parametrize("browser", ["own"], indirect=True)
@pytest.mark.parametrize("name", PRODUCERS)
def test_no_page_sends_a_request_to_another_host(name, deployed, open_page, browser, site, folder):
    """The browser's network log shows no request of any frame to another host."""
    if name == "rollout":
        producers.hostile_registry("plain")
    PRODUCERS[name]("plain", folder)
    assert open_page(PATH, wait_s=1.5).errors == []
    assert open_page(PATH, wait_s=1.5, in_ui=True).errors == []
    if name == "drift":
        for _ in range(2):
            browser.driver.switch_to.frame(0)
        browser.driver.find_element(By.CSS_SELECTOR, "tbody button").click()
        drawn = "return document.querySelectorAll('.js-plotly-plot').length"
        WebDriverWait(browser.driver, 30).until(lambda driver: driver.execute_script(drawn) > 0)
        browser.driver.switch_to.default_content()
        assert browser.console_errors() == []
    own = urlsplit(site.url).netloc
    assert [url for url in browser.quit() if urlsplit(url).netloc != own] == []
