"""Run the service: ``python -m serving --host 127.0.0.1 --port 8000``.

The ``SERVING_WORKERS`` processes share the port, the metrics and the callers' rates. If there are
several workers, one that dies is started again.
"""

import argparse
import os
import tempfile

from serving.http.connections import raise_descriptor_limit, share_descriptors
from serving.memory import choose_pools
from serving.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    settings = Settings()
    raise_descriptor_limit()
    choose_pools()
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="serving-workers-") as folder:
        for name in ("SERVING_METRICS_FOLDER", "SERVING_SHARED_FOLDER"):
            os.environ.pop(name, None)
        if settings.workers > 1:
            # serving/metrics.py and serving/access/callers.py read these variables. The folder is
            # empty at each start, so counters begin at 0.
            os.environ["SERVING_METRICS_FOLDER"] = os.environ["SERVING_SHARED_FOLDER"] = folder
            os.environ["SERVING_WORKERS"] = str(settings.workers)
        uvicorn.run(
            "serving.app:create_app",
            factory=True,
            http="serving.http.connection:Connection",
            ws="none",
            host=given.host,
            port=given.port,
            workers=settings.workers,
            access_log=False,
            server_header=False,
            backlog=share_descriptors(settings.max_connections).backlog,
            # A worker that loads a big model may answer the health check late, although it is
            # alive.
            timeout_worker_healthcheck=30,
        )


if __name__ == "__main__":
    main()
