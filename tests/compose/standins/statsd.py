"""Stand-in for the statsd exporter.

It receives Airflow's metrics over UDP and exposes them with the names and labels of the exporter's
own mapping.
"""

import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

MAPPINGS = yaml.safe_load(
    Path(next(a for a in sys.argv if a.startswith("--statsd.mapping-config=")).partition("=")[2]).read_text()
)["mappings"]
seen: dict[str, float] = {}


def named(name: str) -> str:
    for mapping in MAPPINGS:
        match = re.fullmatch(re.escape(mapping["match"]).replace(r"\*", "([^.]*)"), name)
        if match:
            labels = (f'{label}="{match[int(group[1:])]}"' for label, group in mapping["labels"].items())
            return f"{mapping['name']}{{{','.join(labels)}}}"
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def take() -> None:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind(("", 9125))
    while True:
        for line in listening.recv(65535).decode(errors="replace").splitlines():
            name, _, rest = line.partition(":")
            value, _, kind = rest.partition("|")
            known = named(name)
            seen[known] = float(value) + (seen.get(known, 0) if kind.startswith("c") or value[0] in "+-" else 0)


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write("".join(f"{name} {value}\n" for name, value in sorted(seen.items())).encode())

    def log_message(self, *_):
        pass


threading.Thread(target=take, daemon=True).start()
ThreadingHTTPServer(("", 9102), Metrics).serve_forever()
