"""Streams of responses and messages add up to the whole answer, however the answer's text was split."""

import itertools
import json
from dataclasses import replace
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.entrypoints.http.anthropic.events import AnthropicEncoder
from quire.entrypoints.http.anthropic.objects import AnthropicMessage, AnthropicUsage
from quire.entrypoints.http.responses.events import ResponsesEncoder, without_cut_end
from quire.entrypoints.http.responses.objects import (
    InputTokensDetails,
    OutputTokensDetails,
    ResponseObject,
    ResponsesUsage,
)
from quire.frontend.answer.events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ARGUMENTS = st.dictionaries(TEXTS, st.integers() | TEXTS | st.none(), max_size=2).map(json.dumps)
USAGE = ResponsesUsage(5, InputTokensDetails(2), 7, OutputTokensDetails(0), 12)


@st.composite
def answers(draw: st.DrawFn) -> list[AnswerEvent]:
    """The events of an answer, with texts as long as they get."""
    events: list[AnswerEvent] = []
    num_calls = 0
    for kind in draw(st.lists(st.sampled_from(("reasoning", "content", "call")), max_size=5)):
        if kind == "reasoning":
            events.append(ReasoningText(draw(TEXTS)))
        elif kind == "content":
            events.append(ContentText(draw(TEXTS)))
        else:
            events.append(ToolCallBegin(num_calls, f"call_{num_calls}", draw(TEXTS)))
            events.append(ToolCallArguments(num_calls, draw(ARGUMENTS)))
            events.append(ToolCallEnd(num_calls))
            num_calls += 1
    return events


@st.composite
def split_answers(draw: st.DrawFn) -> tuple[list[AnswerEvent], list[list[AnswerEvent]]]:
    """An answer, and the same in batches, its texts cut anywhere."""
    whole = draw(answers())
    pieces: list[AnswerEvent] = []
    for event in whole:
        if not isinstance(event, ContentText | ReasoningText | ToolCallArguments):
            pieces.append(event)
            continue
        cuts = sorted(draw(st.lists(st.integers(0, len(event.text)), max_size=3)))
        edges = [0, *cuts, len(event.text)]
        pieces += [replace(event, text=event.text[start:end]) for start, end in itertools.pairwise(edges)]
    batches: list[list[AnswerEvent]] = [[]]
    for piece in pieces:
        if draw(st.booleans()):
            batches.append([])
        batches[-1].append(piece)
    return whole, batches


def parse(frames: bytes) -> list[dict[str, Any]]:
    events = []
    for frame in frames.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def new_response() -> ResponseObject:
    return ResponseObject(
        id="resp_1",
        created_at=1,
        status="in_progress",
        model="fake",
        output=[],
        instructions=None,
        max_output_tokens=None,
        max_tool_calls=None,
        metadata={},
        parallel_tool_calls=True,
        previous_response_id=None,
        prompt_cache_key=None,
        reasoning={},
        safety_identifier=None,
        store=True,
        temperature=1.0,
        text={},
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=1.0,
        truncation="disabled",
        user=None,
    )


def fold_response(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the events, by their deltas alone; checks their order on the way."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    items: list[dict[str, Any]] = []
    is_open = False
    for event in events[2:-1]:
        assert event["output_index"] == (len(items) - 1 if is_open else len(items))
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open
            is_open = True
            items.append(event["item"])
            continue
        item = items[-1]
        assert is_open
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "content_part.added":
            item["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            item["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == item["content"][0]["text"]
        elif kind == "content_part.done":
            assert event["part"] == item["content"][0]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == item["arguments"]
        else:
            assert kind == "output_item.done"
            assert {**event["item"], "status": item["status"]} == item
            item["status"] = event["item"]["status"]
            is_open = False
    last = events[-1]
    assert not is_open
    assert last["type"] == f"response.{last['response']['status']}"
    assert items == last["response"]["output"]
    response: dict[str, Any] = last["response"]
    return response


def encode_response(batches: list[list[AnswerEvent]], incomplete_reason: str | None) -> tuple[dict[str, Any], bytes]:
    encoder = ResponsesEncoder(new_response(), "1")
    frames = [encoder.begin(), *(encoder.encode(batch) for batch in batches)]
    frames.append(encoder.finish(USAGE, 2, incomplete_reason))
    return json.loads(msgspec.json.encode(encoder.response)), b"".join(frames)


@given(answer=split_answers(), incomplete_reason=st.sampled_from((None, "max_output_tokens")))
@settings(max_examples=150, deadline=None)
def test_events_of_a_response_add_up_to_the_whole(
    answer: tuple[list[AnswerEvent], list[list[AnswerEvent]]], incomplete_reason: str | None
) -> None:
    whole, batches = answer
    expected, _ = encode_response([whole], incomplete_reason)
    response, frames = encode_response(batches, incomplete_reason)
    assert response == expected
    assert fold_response(parse(frames)) == expected


@given(answer=split_answers(), num_characters=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_a_call_that_is_cut_short_is_incomplete(
    answer: tuple[list[AnswerEvent], list[list[AnswerEvent]]], num_characters: int
) -> None:
    arguments = '{"city": "Bern", "days": 3}'
    events = [ToolCallBegin(0, "c", "f"), ToolCallArguments(0, arguments[:num_characters]), ToolCallEnd(0)]
    response, frames = encode_response([answer[0], list(without_cut_end(events))], "max_output_tokens")
    is_whole = num_characters >= len(arguments)
    assert response["output"][-1]["status"] == ("completed" if is_whole else "incomplete")
    assert fold_response(parse(frames)) == response


def fold_message(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the events of a message."""
    message: dict[str, Any] = events[0]["message"]
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    partial = ""
    for event in events[2:-2]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                partial = ""
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                if delta["type"] == "input_json_delta":
                    partial += delta["partial_json"]
                    continue
                field = delta["type"].removesuffix("_delta")
                block[field] += delta[field]
            case "content_block_stop":
                assert event["index"] == len(message["content"]) - 1
                if partial:
                    message["content"][-1]["input"] = json.loads(partial)
    return message | events[-2]["delta"] | {"usage": events[-2]["usage"]}


def encode_message(batches: list[list[AnswerEvent]]) -> tuple[dict[str, Any], bytes]:
    encoder = AnthropicEncoder(AnthropicMessage("msg_1", "fake", [], AnthropicUsage(5, 2, 1)))
    frames = [encoder.begin(), *(encoder.encode(batch) for batch in batches)]
    frames.append(encoder.finish(AnthropicUsage(5, 2, 7), "end_turn"))
    return json.loads(msgspec.json.encode(encoder.message)), b"".join(frames)


@given(answer=split_answers())
@settings(max_examples=150, deadline=None)
def test_events_of_a_message_add_up_to_the_whole(
    answer: tuple[list[AnswerEvent], list[list[AnswerEvent]]],
) -> None:
    whole, batches = answer
    expected, _ = encode_message([whole])
    message, frames = encode_message(batches)
    assert message == expected
    assert fold_message(parse(frames)) == expected
    calls = any(isinstance(event, ToolCallBegin) for event in whole)
    assert message["stop_reason"] == ("tool_use" if calls else "end_turn")
