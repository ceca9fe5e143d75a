"""/v1/embeddings of one worker: the real application and client over a scripted engine, whose vectors tell the request."""

import base64
import math
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.settings import ServerSettings
from ipc.messages import Pooling
from tests.unit.apiserver.worker_rig import MAX_MODEL_LEN, WorkerRig, error_of


def embed(rig: WorkerRig, input: Any = "hi", **fields: Any) -> httpx.Response:
    return rig.post("/v1/embeddings", {"model": "tiny", "input": input, **fields})


def raw_vectors(rig: WorkerRig, input: Any = "hi", **fields: Any) -> list[list[float]]:
    response = embed(rig, input, use_activation=False, **fields)
    assert response.status_code == 200, response.text
    return [row["embedding"] for row in response.json()["data"]]


def test_every_form_of_input_gives_a_vector_each_in_order(rig: WorkerRig) -> None:
    hi, hello = rig.ids_of("hi"), rig.ids_of("hello world")

    for inputs in ("hi", ["hi"], hi, [hi]):
        assert raw_vectors(rig, inputs) == [[len(hi), hi[0], -Pooling.LAST]]
    for inputs in (["hi", "hello world"], [hi, hello]):
        assert raw_vectors(rig, inputs) == [[len(ids), ids[0], -Pooling.LAST] for ids in (hi, hello)]


def test_the_body_is_openais(rig: WorkerRig) -> None:
    body = embed(rig, ["hi", "hello world"]).json()

    num_tokens = len(rig.ids_of("hi")) + len(rig.ids_of("hello world"))
    assert body.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert body["id"].startswith("embd-") and body["object"] == "list"
    assert [(row["index"], row["object"]) for row in body["data"]] == [(0, "embedding"), (1, "embedding")]
    assert body["usage"] == {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 6},
    }


def test_vectors_have_length_one_also_when_they_are_cut(rig: WorkerRig) -> None:
    for fields in ({}, {"dimensions": 2}):
        [row] = embed(rig, **fields).json()["data"]

        assert len(row["embedding"]) == fields.get("dimensions", 3)
        assert math.isclose(math.hypot(*row["embedding"]), 1.0, rel_tol=1e-6)
    assert raw_vectors(rig, dimensions=2) == [raw_vectors(rig)[0][:2]]


def test_base64_holds_the_same_floats(rig: WorkerRig) -> None:
    [row] = embed(rig, encoding_format="base64").json()["data"]

    values = struct.unpack("<3f", base64.b64decode(row["embedding"]))
    assert list(values) == embed(rig).json()["data"][0]["embedding"]


def test_the_pooling_is_the_servers_unless_the_request_says(folder: Path) -> None:
    rig = WorkerRig(folder, server=ServerSettings(embedding_pooling="mean"))

    assert raw_vectors(rig)[0][2] == -Pooling.MEAN
    assert raw_vectors(rig, pooling="last")[0][2] == -Pooling.LAST


def test_a_long_text_is_cut_when_asked(rig: WorkerRig) -> None:
    assert raw_vectors(rig, "x " * MAX_MODEL_LEN, truncate_prompt_tokens=5)[0][0] == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["hi", [1]]}, "input"),
        ({"input": [[1], [9999]]}, "input[1]"),
        ({"input": "x " * MAX_MODEL_LEN}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"pooling": "cls"}, "pooling"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
        ({"normalize": True}, "normalize"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages"),
        ({"model": "nobody"}, "model"),
    ],
)
def test_a_wrong_request_is_refused_by_name(rig: WorkerRig, fields: dict[str, Any], param: str) -> None:
    response = rig.post("/v1/embeddings", {"input": "hi", **fields})

    assert response.status_code in (400, 404), response.text
    assert error_of(response)["param"] == param
    assert not rig.engine.requests
