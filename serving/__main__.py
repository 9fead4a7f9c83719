"""``python -m serving --host 127.0.0.1 --port 8000``: the service with ``SERVING_WORKERS`` processes that share the port.

Of several, one that dies is started again; their metrics are told together, whichever is asked. Under plain ``uvicorn serving.app:app`` the service answers
the same, without its fast path.
"""

import argparse
import os
import tempfile

from serving.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    settings = Settings()
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="serving-metrics-") as folder:
        os.environ.pop("SERVING_METRICS_FOLDER", None)
        if settings.workers > 1:
            os.environ["SERVING_METRICS_FOLDER"] = folder  # read by serving/metrics.py; empty at each start, so counters begin at 0
            os.environ["SERVING_WORKERS"] = str(settings.workers)  # each takes its share of a caller's rate
        uvicorn.run(
            "serving.app:app", http="serving.connection:Connection", host=given.host, port=given.port, workers=settings.workers, access_log=False, backlog=2048,
            timeout_worker_healthcheck=30,  # a worker that is loading a big model is not a dead one
        )  # fmt: skip


if __name__ == "__main__":
    main()
