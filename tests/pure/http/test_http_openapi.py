"""/openapi.json and /docs say what the server does."""

from typing import Any

import pytest

from quire.entrypoints.http.protocol import ChatBody

pytestmark = pytest.mark.anyio


async def test_the_document_has_every_route_and_resolves(quiet: Any) -> None:
    document = (await quiet.client.get("/openapi.json")).json()
    assert {"/v1/completions", "/v1/models/{name}", "/tokenize", "/version", "/docs"} <= set(document["paths"])
    schemas, missing = document["components"]["schemas"], []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            reference = value.get("$ref", "")
            if isinstance(reference, str) and reference:
                section, _, name = reference.removeprefix("#/components/").partition("/")
                if name not in document["components"][section]:
                    missing.append(reference)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    assert not missing
    assert set(schemas["ChatBody"]["properties"]) == set(ChatBody.model_fields)
    temperature = schemas["ChatBody"]["properties"]["temperature"]["anyOf"][0]
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    assert schemas["ChatBody"]["required"] == ["messages"]
    described = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "405", "413", "429", "500", "503"} <= set(described["responses"])
    assert "422" not in described["responses"]
    assert set(described["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


async def test_errors_and_events_have_the_shape_of_their_api(quiet: Any) -> None:
    document = (await quiet.client.get("/openapi.json")).json()
    schemas = {}
    for path in ("/v1/messages", "/v1/chat/completions"):
        responses = document["paths"][path]["post"]["responses"]
        error = document["components"]["responses"][responses["400"]["$ref"].rpartition("/")[2]]
        schemas[path] = error["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        event = responses["200"]["content"]["text/event-stream"]["schema"]
        assert event["required"] == ["data"]
    assert schemas == {"/v1/messages": "AnthropicError", "/v1/chat/completions": "ErrorEnvelope"}


async def test_every_route_that_takes_a_body_describes_it(quiet: Any) -> None:
    paths = (await quiet.client.get("/openapi.json")).json()["paths"]
    bare = {path for path, methods in paths.items() if "post" in methods and "requestBody" not in methods["post"]}
    assert bare == {"/ping", "/v1/responses/{response_id}/cancel"}


async def test_the_page_loads_nothing(quiet: Any) -> None:
    response = await quiet.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "/v1/chat/completions" in response.text and "structured_outputs" in response.text
    assert "<script" not in response.text and "src=" not in response.text


async def test_docs_need_a_key_and_can_be_left_out(serve: Any) -> None:
    async with serve(api_key=("k",)) as server:
        statuses = [(await server.client.get(path)).status_code for path in ("/docs", "/openapi.json")]
    assert statuses == [401, 401]
    async with serve(disable_fastapi_docs=True) as server:
        statuses = [(await server.client.get(path)).status_code for path in ("/docs", "/openapi.json")]
    assert statuses == [404, 404]
