"""Stand-in for ``include.training`` in tests of pods, with a behavior that the test chooses.

It has the same command line and manifest, and uses only the standard library. While it runs, it
writes to ``<manifest>.lives/<host>``. A test can thus detect, without Kubernetes, whether two
processes of a step ever ran concurrently.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

BEAT = 0.1  # seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--behave", required=True)
    for name in ("manifest", "request", "project", "candidate", "report", "dag-run"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    manifest = Path(given.manifest)
    manifest.parent.mkdir(parents=True, exist_ok=True, mode=0o777)
    beat = lives(manifest)
    beat()
    threading.Thread(target=go_on, args=(beat,), daemon=True).start()
    print(f"first line, at {time.time():.3f}", flush=True)
    how, _, amount = given.behave.partition(":")
    BEHAVIOURS[how](manifest, amount)
    if how != "nothing":
        content = {"step": given.command, "request": given.request, "ended": time.time()}
        draft = manifest.with_suffix(".draft")
        draft.write_text(json.dumps(content))
        draft.replace(manifest)
    print("last line", flush=True)


def lives(manifest: Path) -> Callable[[], None]:
    """Return a function that records a sign of life."""
    folder = manifest.with_suffix(".lives")
    folder.mkdir(parents=True, exist_ok=True, mode=0o777)
    began, name = time.time(), Path("/etc/hostname").read_text().strip()

    def beat() -> None:
        draft = folder / f".{name}"
        draft.write_text(f"{began} {time.time()}")
        draft.replace(folder / name)

    return beat


def go_on(beat: Callable[[], None]) -> None:
    while True:
        time.sleep(BEAT)
        beat()


def eat(_manifest: Path, mebibytes: str) -> None:
    """Allocate and touch this much memory."""
    eaten = []
    for _ in range(int(mebibytes) // 8):
        eaten.append(bytearray(8 * 2**20))
        time.sleep(0.002)


def write(_manifest: Path, mebibytes: str) -> None:
    """Fill /tmp with this much data."""
    with Path("/tmp/filled").open("wb") as file:
        for _ in range(int(mebibytes)):
            file.write(b"\1" * 2**20)
    time.sleep(600)


def crash(_manifest: Path, _: str) -> None:
    print("about to fail", flush=True)
    raise RuntimeError("the label column is empty")


def count(manifest: Path, seconds: str) -> None:
    """Do one unit of work per second, and checkpoint each next to the manifest.

    A later try does not repeat completed units.
    """
    kept = manifest.with_suffix(".checkpoint") / "count"
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o777)
    done = int(kept.read_text()) if kept.exists() else 0
    print(f"begins at {done}", flush=True)
    for number in range(done, int(seconds)):
        time.sleep(1)
        draft = kept.with_suffix(".draft")
        draft.write_text(str(number + 1))
        # Atomic: a kill leaves the old or the new file.
        draft.replace(kept)
        print(f"did {number}", flush=True)


def hang(_manifest: Path, _: str) -> None:
    print("hanging", flush=True)
    time.sleep(3600)


BEHAVIOURS = {
    "work": lambda *_: None,
    "nothing": lambda *_: None,
    "eat": eat,
    "write": write,
    "crash": crash,
    "count": count,
    "hang": hang,
}

if __name__ == "__main__":
    sys.exit(main())
