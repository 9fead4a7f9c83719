"""Call a service with KServe's own client, in the environment that has it.

Usage: ``python kserve_client.py URL MODEL``. Writes the client's results to stdout as JSON.
"""

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NUMBERS = [[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]]
TEXTS = [["a"], [""]]


def request(
    datatype: str, *, binary: bool, binary_output: bool | None = None, numbers: Any = NUMBERS, **others: Any
) -> InferRequest:
    values = np.array(numbers, dtype=DATATYPES[datatype])
    numeric = InferInput("numeric", list(values.shape), datatype)
    numeric.set_data_from_numpy(values, binary_data=binary)
    texts = np.array(TEXTS, dtype=object)
    categorical = InferInput("categorical", list(texts.shape), "BYTES")
    categorical.set_data_from_numpy(texts, binary_data=binary)
    if binary_output is not None:
        others["parameters"] = {"binary_data_output": binary_output}
    return InferRequest("ignored", [numeric, categorical], **others)


async def main(url: str, name: str) -> dict[str, Any]:
    results: dict[str, Any] = {}

    async def refusal(call: Any) -> list[Any]:
        try:
            await call
        except httpx.HTTPStatusError as error:
            return [error.response.status_code, str(error)]
        return [200, ""]

    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:

        async def predictions(asked: Any) -> list[float]:
            answer = await client.infer(url, asked, model_name=name)
            return answer.outputs[0].as_numpy().tolist()

        results["live"], results["ready"] = await client.is_server_live(url), await client.is_server_ready(url)
        results["model ready"] = [await client.is_model_ready(url, name), await client.is_model_ready(url, "nobody")]
        results["binary"] = {datatype: await predictions(request(datatype, binary=True)) for datatype in DATATYPES}
        results["json"] = {
            datatype: await predictions(request(datatype, binary=False)) for datatype in DATATYPES if datatype != "FP16"
        }
        results["binary output"] = await predictions(request("FP32", binary=True, binary_output=True))
        chosen = [RequestedOutput("prediction_id", {"binary_data": True}), RequestedOutput("prediction")]
        answer = await client.infer(
            url, request("FP32", binary=False, request_outputs=chosen, request_id="r-7"), model_name=name
        )
        results["outputs"] = [
            answer.id,
            answer.model_version,
            [output.name for output in answer.outputs],
            answer.outputs[1].as_numpy().tolist(),
        ]
        tensors = request("FP32", binary=False).to_rest()[0]["inputs"]
        nulls = {
            "id": None,
            "parameters": None,
            "outputs": None,
            "inputs": [{**tensor, "parameters": None} for tensor in tensors],
        }
        results["nulls"] = await predictions(nulls)
        # The client writes NaN as null.
        results["nan"] = await predictions(request("FP64", binary=False, numbers=[[np.nan] * 5, NUMBERS[1]]))
        results["unknown model"] = await refusal(client.infer(url, request("FP32", binary=True), model_name="nobody"))
        results["wrong shape"] = await refusal(
            client.infer(url, request("FP32", binary=True, numbers=[[1, 2]] * 2), model_name=name)
        )
    return results


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:3]))))
