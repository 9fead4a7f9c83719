"""Behind real nginx and real Caddy no client can write into another client's connection."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import keys
from tests.ports import free_port
from tests.serving.harness import NAME, REPOSITORY, expected
from tests.serving.http.test_protocol import OFFERS, SHAPES, answers, message
from tests.serving.wire import PATH, RAW
from tests.waiting import wait_for

pytestmark = pytest.mark.stack

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr warn; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream serving {{ server 127.0.0.1:{upstream}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://serving;
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""  # noqa: E501


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def site_block(port: int, upstream: int) -> str:
    """Return the service's block of our Caddyfile with another address and without TLS."""
    lines = (REPOSITORY / "deploy" / "proxy" / "Caddyfile").read_text().splitlines()
    first = lines.index("serving.{$SITE_DOMAIN:localhost} {")
    block = "\n".join(lines[first + 1 : lines.index("}", first)])
    ours = block.replace("\timport site\n", "").replace("serving:8000", f"127.0.0.1:{upstream}")
    assert "reverse_proxy" in ours and str(upstream) in ours
    return (
        f"{{\n\tadmin off\n\tauto_https off\n}}\nhttp://127.0.0.1:{port}, http://localhost:{port} {{\n\tbind"
        f" 127.0.0.1\n{ours}\n}}\n"
    )


@pytest.fixture(scope="module")
def keyed(tmp_path_factory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, keys.create(file, "victim", ["predict"])


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request, start, keyed, tmp_path) -> Iterator[int]:
    """Return the port of a proxy in front of a service with keys."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed: apt-get install nginx-light caddy")
    service, port = start(keys_file=keyed[0]), free_port()
    config = tmp_path / "proxy.conf"
    if request.param == "nginx":
        config.write_text(NGINX.format(folder=tmp_path, upstream=service.port, port=port))
        command = [program, "-c", str(config), "-p", str(tmp_path)]
    else:
        config.write_text(site_block(port, service.port))
        command = [program, "run", "--adapter", "caddyfile", "--config", str(config)]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with (tmp_path / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: is_open(port), 20, (tmp_path / "proxy.log").read_text)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def ask(port: int, key: str, hour: int) -> tuple[int, float | None]:
    body = json.dumps({"instances": [{**RAW, "hour": hour}]}).encode()
    responses, _ = answers(port, message("POST", PATH, f"X-API-Key: {key}\r\nConnection: close\r\n", body))
    status, content = responses[0]
    return status, json.loads(content)["predictions"][0]["prediction"] if status == 200 else None


def attacks() -> list[bytes]:
    """Return requests without a key that contain another request."""
    inner = message("GET", "/v2/health/live", "X-Attack: yes\r\n", None)
    messages = []
    for offer in OFFERS.values():
        for method, path in (("POST", PATH), ("GET", "/live"), ("POST", "/live")):
            messages += [message(method, path, offer, inner, chunked=chunked) for chunked in (False, True)]
    return messages + [shape.replace(b"%p", b"/live") + inner for shape in SHAPES.values()]


def test_no_client_gets_the_answer_to_anothers_request(proxy, keyed):
    """No client gets the answer to another client's request.

    The attackers' answers would be 200 (of /live), 401 or 400. Each of the victim's answers must be
    the prediction for its own hour.
    """
    assert ask(proxy, keyed[1], 1) == (200, expected({**RAW, "hour": 1}))
    stop, wrong = threading.Event(), []

    def victim():
        hour = 0
        while not stop.is_set():
            hour = (hour + 1) % 24
            answered = ask(proxy, keyed[1], hour)
            if answered != (200, expected({**RAW, "hour": hour})):
                wrong.append((hour, answered))

    thread = threading.Thread(target=victim)
    thread.start()
    try:
        for attack in attacks():
            answers(proxy, attack, wait=0.6)
    finally:
        stop.set()
        thread.join(20)
    assert wrong == []


def test_an_offer_with_a_key_is_answered_through_a_proxy(proxy, keyed):
    """An upgrade offer with a key is answered through a proxy.

    The JDK's client sends an offer with each first request over plain HTTP.
    """
    body = json.dumps({"instances": [RAW]}).encode()
    offer = f"X-API-Key: {keyed[1]}\r\n{OFFERS['h2c']}"
    responses, _ = answers(proxy, message("POST", f"/models/{NAME}/predict", offer, body))
    assert [status for status, _ in responses] == [200]
    assert json.loads(responses[0][1])["predictions"][0]["prediction"] == expected(RAW)
