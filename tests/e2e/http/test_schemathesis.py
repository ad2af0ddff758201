"""Our own OpenAPI document, tried out by schemathesis: what it allows and what it forbids, on every operation."""

import json
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from quire.entrypoints.http.app import make_routers
from quire.entrypoints.http.openapi import build_document

NUM_CASES = 12
ANSWER_SECONDS = 60.0
FEW_TOKENS = 4
FEW_ANSWERS = 2
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

SCHEMA = schemathesis.openapi.from_dict(build_document(make_routers(with_profiles=False)))
OPERATIONS = {operation.label: operation for result in SCHEMA.get_all_operations() if (operation := result.ok())}
WITH_INPUT = [label for label, operation in OPERATIONS.items() if operation.body.items or operation.query.items]


def briefly(body: Any) -> Any:
    """A body that the document allows, asking for less work and for the model that is served."""
    if not isinstance(body, dict):
        return body
    body = {name: value for name, value in body.items() if name != "model"}
    for name in LENGTHS:
        if isinstance(body.get(name), int):
            body[name] = min(body[name], FEW_TOKENS)
    for name in ("n", "best_of"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], FEW_ANSWERS)
    if "min_tokens" in body:
        body["min_tokens"] = 1
    name = "max_output_tokens" if "input" in body else "max_tokens"
    if all(body.get(name) is None for name in LENGTHS):
        body[name] = FEW_TOKENS
    return body


def check_events(response: Response) -> None:
    """The events of a stream are JSON, and none tells of an error that is ours."""
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        lines = response.content.decode().splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
        assert events
        assert not [event for event in events if "error" in event and event["error"].get("code", 500) >= 500]


def try_out(server: Any, label: str, mode: GenerationMode) -> Counter[int]:
    """Sends cases of one operation; returns the statuses."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=NUM_CASES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def send(case: Case) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = briefly(case.body)
        response = case.call(base_url=server.url, timeout=ANSWER_SECONDS)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        check_events(response)

    send()
    return statuses


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_the_document_allows(server: Any, label: str) -> None:
    statuses = try_out(server, label, GenerationMode.POSITIVE)
    if "{" not in label:
        assert statuses[200], statuses
    server.wait_until_idle()


@pytest.mark.parametrize("label", WITH_INPUT)
def test_what_the_document_forbids(server: Any, label: str) -> None:
    assert not try_out(server, label, GenerationMode.NEGATIVE)[200]
