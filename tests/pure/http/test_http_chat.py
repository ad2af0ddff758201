"""POST /v1/chat/completions."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


def _text(events: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_whole_answer(serve: Any) -> None:
    async with serve() as server:
        response = await server.chat(model="alias")
        answer = response.json()
    assert response.status_code == 200
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "alias")
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 8
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("length", None, None)
    prompt = "<s>user\nHello<e>\n<s>assistant\n"
    assert answer["usage"] == {
        "prompt_tokens": len(prompt) - 3 * 2,
        "completion_tokens": 8,
        "total_tokens": len(prompt) - 3 * 2 + 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_stream_is_the_whole_answer_in_pieces(serve: Any) -> None:
    async with serve() as server:
        whole = (await server.chat()).json()
        response = await server.chat(stream=True)
        events = server.events(response)
    assert response.headers["cache-control"] == "no-cache"
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert _text(events) == whole["choices"][0]["message"]["content"]
    finish_reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert finish_reasons == [None] * (len(events) - 1) + ["length"]
    assert not any("usage" in event for event in events)


async def test_usage_at_the_end_of_a_stream(serve: Any) -> None:
    async with serve() as server:
        whole = (await server.chat()).json()
        events = server.events(await server.chat(stream=True, stream_options={"include_usage": True}))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(event["usage"] is None for event in events[:-1])


async def test_usage_in_every_frame_of_a_stream(serve: Any) -> None:
    async with serve() as server:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = server.events(await server.chat(stream=True, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 8)


async def test_several_samples_differ_and_stream_alike(serve: Any) -> None:
    async with serve() as server:
        whole = (await server.chat(n=3)).json()
        events = server.events(await server.chat(n=3, stream=True))
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [_text(events, index) for index in range(3)] == texts
    roles = [choice["index"] for event in events for choice in event["choices"] if "role" in choice["delta"]]
    assert sorted(roles) == [0, 1, 2]


async def test_same_seed_same_answer(serve: Any) -> None:
    async with serve() as server:
        answers = [(await server.chat(seed=seed)).json() for seed in (5, 5, 6)]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0] == texts[1] != texts[2]


async def test_stop_string_ends_the_answer_and_stays_out_of_it(serve: Any) -> None:
    async with serve() as server:
        text = (await server.chat()).json()["choices"][0]["message"]["content"]
        stop = text[3:5]
        expected = text[: text.index(stop)]
        (choice,) = (await server.chat(stop=[stop])).json()["choices"]
        events = server.events(await server.chat(stop=stop, stream=True))
        (kept,) = (await server.chat(stop=stop, include_stop_str_in_output=True)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == (expected, "stop", stop)
    assert _text(events) == expected
    assert events[-1]["choices"][0]["stop_reason"] == stop
    assert kept["message"]["content"] == expected + stop


async def test_max_completion_tokens(serve: Any) -> None:
    async with serve() as server:
        body = server.chat_body(max_completion_tokens=3)
        del body["max_tokens"]
        answer = (await server.post("/v1/chat/completions", body)).json()
    assert answer["usage"]["completion_tokens"] == 3


async def test_without_max_tokens_the_context_is_the_limit(serve: Any) -> None:
    async with serve() as server:
        answer = (await server.chat(max_tokens=None, max_completion_tokens=None)).json()
    assert answer["usage"]["total_tokens"] == 512


async def test_logprobs(serve: Any) -> None:
    async with serve() as server:
        plain = (await server.chat(logprobs=True)).json()["choices"][0]
        top = (await server.chat(logprobs=True, top_logprobs=1)).json()["choices"][0]
        events = server.events(await server.chat(logprobs=True, stream=True))
        named = (await server.chat(logprobs=True, return_tokens_as_token_ids=True, return_token_ids=True)).json()
    entries = plain["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == plain["message"]["content"]
    assert all(bytes(entry["bytes"]).decode() == entry["token"] and entry["logprob"] < 0 for entry in entries)
    assert all(entry["top_logprobs"] == [] for entry in entries)
    assert [entry["top_logprobs"][0]["token"] for entry in top["logprobs"]["content"]] == [e["token"] for e in entries]
    pieces = [event["choices"][0]["logprobs"] for event in events]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == entries
    choice = named["choices"][0]
    assert [e["token"] for e in choice["logprobs"]["content"]] == [f"token_id:{i}" for i in choice["token_ids"]]


async def test_token_ids_and_prompt_logprobs(serve: Any) -> None:
    async with serve() as server:
        answer = (await server.chat(return_token_ids=True, prompt_logprobs=0)).json()
        events = server.events(await server.chat(return_token_ids=True, stream=True))
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None
    assert events[0]["choices"][0]["prompt_token_ids"] == answer["prompt_token_ids"]
    streamed = [i for event in events for i in event["choices"][0].get("token_ids", [])]
    assert streamed == answer["choices"][0]["token_ids"]


async def test_cached_prompt_tokens_are_reported(serve: Any) -> None:
    async with serve() as server:
        answers = [(await server.chat("x" * 100)).json() for _ in range(2)]
    details = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert details == [0, 112]


async def test_control_tokens_in_user_text_stay_text(serve: Any) -> None:
    async with serve() as server:
        plain = (await server.chat("x", return_token_ids=True)).json()["prompt_token_ids"]
        forged = (await server.chat("<|im_end|>", return_token_ids=True)).json()["prompt_token_ids"]
    control = max(plain)
    assert forged.count(control) == plain.count(control)
    assert len(forged) == len(plain) + len("<|im_end|>") - 1


async def test_content_parts_template_variables_and_prefixes(serve: Any, tokenizer: Any) -> None:
    async with serve() as server:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        conversation = [
            {"role": "developer", "content": parts, "name": "me"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "so", "tool_calls": None, "refusal": None},
        ]
        body = {"messages": conversation, "max_tokens": 1, "return_token_ids": True}
        body |= {"continue_final_message": True, "chat_template_kwargs": {"shout": "!"}}
        answer = (await server.post("/v1/chat/completions", body)).json()
    text = tokenizer.decode(answer["prompt_token_ids"], skip_special_tokens=False)
    expected = "<|im_start|>developer\na\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nso"
    assert text == expected


async def test_vllm_extras_reach_the_engine(serve: Any) -> None:
    extras = {
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "temperature": 0.7,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [7],
        "bad_words": ["no"],
        "allowed_token_ids": [1, 2, 3],
        "skip_special_tokens": False,
    }
    async with serve() as server:
        response = await server.chat(**extras, logit_bias={"5": 1.5}, priority=-3, cache_salt="team")
        (request,) = server.port.requests
    assert response.status_code == 200
    assert {name: getattr(request.sampling, name) for name in extras} == extras
    assert request.sampling.logit_bias == {5: 1.5}
    assert (request.priority, request.cache_salt, request.eos_token_ids) == (-3, "team", ())
