"""Contents that an attacker could put into a model registry, and a hostile registry server.

The graphs hang, allocate memory or read other files. A test chooses every byte of the server's
answers.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.serving.bad_models import _slow
from tests.serving.harness import graph

API = "/api/2.0/"


def hanging_graph(late_hour: float = -1e9) -> bytes:
    """Return a variant of ``harness.graph`` that loops for hours from the hour ``late_hour`` on.

    By default it always loops, also for its golden requests.
    """
    model = onnx.load_from_string(graph(output="good"))
    nodes, constants = _slow()
    head = [
        helper.make_node("Gather", ["filled", "first"], ["hour"], axis=1),
        helper.make_node("ReduceMax", ["hour"], ["latest"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["latest", "limit"], ["late"]),
        helper.make_node("Cast", ["late"], ["whole"], to=TensorProto.INT64),
    ]
    constants |= {"first": np.array(0), "limit": np.float32(late_hour), "many": np.array(2**40)}
    return _finished(model, [*head, *nodes], constants)


def allocating_graph(gigabytes: int) -> bytes:
    """Return a variant of ``harness.graph`` that allocates this many gigabytes in each run."""
    model = onnx.load_from_string(graph(output="good"))
    nodes = [
        helper.make_node("Shape", ["numeric"], ["shape"]),
        helper.make_node("Mul", ["shape", "times"], ["big"]),
        helper.make_node("ConstantOfShape", ["big"], ["filled_up"]),
        helper.make_node("ReduceMax", ["filled_up"], ["zero_or_worse"], keepdims=0),
    ]
    return _finished(model, nodes, {"times": np.array([1, gigabytes * 2**26])})


def sized_graph() -> bytes:
    """Return ``harness.graph`` with a product of two square matrices. Their size is the hour."""
    model = onnx.load_from_string(graph(output="good"))
    nodes = [
        helper.make_node("Gather", ["filled", "first"], ["hour"], axis=1),
        helper.make_node("ReduceMax", ["hour"], ["latest"], keepdims=0),
        helper.make_node("Cast", ["latest"], ["rows"], to=TensorProto.INT64),
        helper.make_node("Max", ["rows", "one"], ["some"]),
        helper.make_node("Unsqueeze", ["some", "axis"], ["side"]),
        helper.make_node("Concat", ["side", "side"], ["square"], axis=0),
        helper.make_node("ConstantOfShape", ["square"], ["matrix"]),
        helper.make_node("MatMul", ["matrix", "matrix"], ["product"]),
        helper.make_node("ReduceMax", ["product"], ["zero_or_worse"], keepdims=0),
    ]
    return _finished(model, nodes, {"first": np.array(0), "one": np.array(1), "axis": np.array([0])})


def external_graph(location: str, subgraph: bool = False) -> tuple[bytes, bytes]:
    """Return ``harness.graph`` with its bias in the file ``location``, and that file's content."""
    model = onnx.load_from_string(graph(1))
    tensor = next(entry for entry in model.graph.initializer if entry.name == "bias")
    content = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    if subgraph:
        inner = helper.make_graph(
            [helper.make_node("Identity", ["inner_bias"], ["chosen"])],
            "branch",
            [],
            [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [1])],
        )
        inner.initializer.append(tensor)
        inner.initializer[0].name = "inner_bias"
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.node.insert(0, helper.make_node("If", ["yes"], ["bias"], then_branch=inner, else_branch=inner))
    return model.SerializeToString(), content


def _finished(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> bytes:
    model.graph.node.extend([*nodes, helper.make_node("Add", ["good", "zero_or_worse"], ["prediction"])])
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"]))
    return model.SerializeToString()


def entry(name: object, version: object = "1", **fields: Any) -> dict[str, Any]:
    """Return a registered model in the format of MLflow's REST API."""
    return {
        "name": name,
        "creation_timestamp": 1,
        "aliases": [{"alias": "champion", "version": version}],
        "tags": [],
    } | fields


class HostileMlflow:
    """A server with the part of MLflow's REST API that serving uses.

    Its attributes define its answers.

    Attributes:
        entries: of the registered models.
        versions: fields of versions, by model.
        files: folder of each model's files.
        drip: seconds between two bytes of a path that contains this text.
    """

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.versions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, Path] = {}
        self.drip: dict[str, float] = {}
        self.replies: dict[str, Callable[[Any], bytes]] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, name: str, bundle: Path, **fields: Any) -> None:
        self.entries.append(entry(name, **fields))
        self.files[name] = bundle

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlparse(request.path)
        path, query = (
            unquote(url.path).removeprefix(API),
            {key: values[0] for key, values in parse_qs(url.query).items()},
        )
        content = self._content(path, query)
        request.send_response(200 if content is not None else 404)
        body = content if content is not None else b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        pause = next((seconds for part, seconds in self.drip.items() if part in unquote(request.path)), 0)
        try:
            for block in [body] if not pause else (body[at : at + 1] for at in range(len(body))):
                request.wfile.write(block)
                time.sleep(pause)
        except OSError:
            pass

    def _content(self, path: str, query: dict[str, str]) -> bytes | None:
        if path in self.replies:
            return self.replies[path](query)
        name = query.get("name", "")
        match path.split("/"):
            case ["mlflow", "registered-models", "search"]:
                token = json.loads(base64.b64decode(query["page_token"]))["offset"] if "page_token" in query else 0
                size = int(query["max_results"])
                page = {"registered_models": self.entries[token : token + size]}
                if token + size < len(self.entries):
                    page["next_page_token"] = base64.b64encode(json.dumps({"offset": token + size}).encode()).decode()
                return json.dumps(page).encode()
            case ["mlflow", "registered-models", "get"]:
                entry = next((one for one in self.entries if isinstance(one, dict) and one.get("name") == name), None)
                return None if entry is None else json.dumps({"registered_model": entry}).encode()
            case ["mlflow", "model-versions", "get"]:
                version = {"version": query["version"], "source": f"models:/{name}", "tags": []} | self.versions.get(
                    name, {}
                )
                return json.dumps({"model_version": version}).encode()
            case ["mlflow", "model-versions", "get-download-uri"]:
                return json.dumps({"artifact_uri": f"mlflow-artifacts:/{name}"}).encode()
            case ["mlflow-artifacts", "artifacts"]:
                folder = self.files[query["path"]]
                return json.dumps(
                    {"files": [{"path": file.name, "is_dir": file.is_dir()} for file in sorted(folder.iterdir())]}
                ).encode()
            case ["mlflow-artifacts", "artifacts", model, file]:
                return (self.files[model] / file).read_bytes()
        return None


def hostile_mlflow() -> Iterator[HostileMlflow]:
    """Run the server, for use in a fixture."""
    server = HostileMlflow()
    yield server
    server.close()
