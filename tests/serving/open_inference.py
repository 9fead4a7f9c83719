"""The HTTP interface of the Open Inference Protocol as OpenAPI, written from its text.

Source:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
The protocol's own OpenAPI file has fewer limits. It does not have health documents, datatypes, or
the paths without a version.
"""

from typing import Any

TEXT, NUMBER, FLAG, ANY = {"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "object"}
DATATYPES = [
    "BOOL",
    *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def structure(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def optional(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow null, which clients write for omitted fields."""
    return {"anyOf": [schema, {"type": "null"}]}


def part(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


PARAMETERS = {"type": "object", "additionalProperties": {"anyOf": [TEXT, NUMBER, FLAG]}}
SHAPE = array({"type": "integer", "minimum": 0, "maximum": 2**64 - 1})
TENSOR = {"name": TEXT, "shape": SHAPE, "datatype": {"enum": DATATYPES}}
METADATA = {**TENSOR, "shape": array({"type": "integer", "minimum": -1})}
SCHEMAS = {
    "data": array({"anyOf": [part("data"), NUMBER, TEXT, FLAG]}),
    "request": structure(
        {"inputs": array(structure({**TENSOR, "data": part("data")}, parameters=optional(PARAMETERS)))},
        id=optional(TEXT),
        parameters=optional(PARAMETERS),
        outputs=optional(array(structure({"name": TEXT}, parameters=optional(PARAMETERS)))),
    ),
    "response": structure(
        {"model_name": TEXT, "outputs": array(structure({**TENSOR, "data": part("data")}, parameters=PARAMETERS))},
        model_version=TEXT,
        id=TEXT,
        parameters=PARAMETERS,
    ),
    "server": structure({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "model": structure(
        {"name": TEXT, "platform": TEXT, "inputs": array(structure(METADATA)), "outputs": array(structure(METADATA))},
        versions=array(TEXT),
    ),
    "live": structure({"live": FLAG}),
    "ready": structure({"ready": FLAG}),
    "model_ready": structure({"name": TEXT, "ready": FLAG}),
    "error": structure({"error": TEXT}),
}


def _operation(answer: str, request: str | None = None) -> dict[str, Any]:
    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": part(name)}}

    responses = {
        "200": {"description": "OK", "content": content(answer)},
        "default": {"description": "An error", "content": content("error")},
    }
    body = {"requestBody": {"required": True, "content": content(request)}} if request else {}
    return {"responses": responses, **body}


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("server")},
        "/v2/health/live": {"get": _operation("live")},
        "/v2/health/ready": {"get": _operation("ready")},
    }
    for version in ("", "/versions/{MODEL_VERSION}"):
        names = ["MODEL_NAME", "MODEL_VERSION"] if version else ["MODEL_NAME"]
        given = {"parameters": [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]}
        at = f"/v2/models/{{MODEL_NAME}}{version}"
        paths[at] = {**given, "get": _operation("model")}
        paths[f"{at}/ready"] = {**given, "get": _operation("model_ready")}
        paths[f"{at}/infer"] = {**given, "post": _operation("response", "request")}
    return paths


OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "Open Inference Protocol", "version": "2"},
    "paths": _paths(),
    "components": {"schemas": SCHEMAS},
}
