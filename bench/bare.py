"""Provide the practical limit: the same server (uvicorn) and JSON, but no model."""

import orjson

ANSWER = {
    "model": "bench",
    "model_version": "1",
    "predictions": [
        {
            "prediction_id": "5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80",
            "prediction": 0.37,
            "feature_times": {},
            "missing": [],
            "model_version": "1",
            "arm": "champion",
            "gaps": [],
        }
    ],
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    orjson.loads(body)
    answer = orjson.dumps(ANSWER)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
