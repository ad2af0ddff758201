"""POST /v1/completions."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


def _text(events: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index)


async def test_whole_answer_and_default_length(serve: Any) -> None:
    async with serve() as server:
        answer = (await server.complete()).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert (len(choice["text"]), choice["finish_reason"], choice["logprobs"]) == (16, "length", None)
    assert answer["usage"]["prompt_tokens"] == 5


async def test_stream_is_the_whole_answer_in_pieces(serve: Any) -> None:
    async with serve() as server:
        whole = (await server.complete(logprobs=0)).json()["choices"][0]
        events = server.events(await server.complete(stream=True, logprobs=0))
    assert _text(events) == whole["text"]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    pieces = [event["choices"][0]["logprobs"] for event in events]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for piece in pieces for entry in piece[field]] == whole["logprobs"][field]


async def test_prompts_of_all_kinds_in_order(serve: Any, tokenizer: Any) -> None:
    prompts = ["Hello", tokenizer.encode("Hello"), "World", tokenizer.encode("World")]
    async with serve() as server:
        alone = [(await server.complete(prompt)).json()["choices"][0]["text"] for prompt in prompts]
        together = (await server.complete(prompts, n=2)).json()
        streamed = server.events(await server.complete(prompts, n=2, stream=True))
    assert alone[0] == alone[1] != alone[2] == alone[3]
    assert [choice["index"] for choice in together["choices"]] == list(range(8))
    texts = [choice["text"] for choice in together["choices"]]
    assert texts[::2] == alone
    assert [_text(streamed, index) for index in range(8)] == texts
    assert together["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 8 * 16,
        "total_tokens": 20 + 8 * 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_usage_of_a_stream_over_several_prompts(serve: Any) -> None:
    async with serve() as server:
        options = {"include_usage": True}
        events = server.events(await server.complete(["a", "bc"], stream=True, stream_options=options))
    assert events[-1]["usage"]["prompt_tokens"] == 3
    assert events[-1]["usage"]["completion_tokens"] == 32


async def test_best_of_returns_the_likeliest(serve: Any) -> None:
    async with serve() as server:
        answer = (await server.complete(n=2, best_of=4)).json()
        (request,) = server.port.requests
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert request.num_samples == 4
    assert answer["choices"][0]["logprobs"] is None


async def test_echo(serve: Any, tokenizer: Any) -> None:
    async with serve() as server:
        plain = (await server.complete()).json()["choices"][0]["text"]
        whole = (await server.complete(echo=True)).json()["choices"][0]["text"]
        of_ids = (await server.complete(tokenizer.encode("Hello"), echo=True)).json()["choices"][0]["text"]
        events = server.events(await server.complete(echo=True, stream=True))
    assert whole == of_ids == _text(events) == "Hello" + plain


async def test_echo_with_logprobs_covers_the_prompt(serve: Any) -> None:
    async with serve() as server:
        choice = (await server.complete(echo=True, logprobs=1, max_tokens=2)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == list(range(7))
    assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_alone_scores_the_prompt(serve: Any, stream: bool) -> None:
    async with serve() as server:
        fields = {"echo": True, "max_tokens": 0}
        response = await server.complete(stream=stream, **fields, **({} if stream else {"logprobs": 0}))
    choices = [e["choices"][0] for e in server.events(response)] if stream else response.json()["choices"]
    (choice,) = choices
    assert (choice["text"], choice["finish_reason"]) == ("Hello", "length")
    if not stream:
        assert choice["logprobs"]["tokens"] == list("Hello")
        assert response.json()["usage"]["completion_tokens"] == 0


async def test_token_ids_with_and_without_streaming(serve: Any, tokenizer: Any) -> None:
    async with serve() as server:
        choice = (await server.complete(return_token_ids=True)).json()["choices"][0]
        events = server.events(await server.complete(return_token_ids=True, stream=True))
    assert choice["prompt_token_ids"] == events[0]["choices"][0]["prompt_token_ids"] == tokenizer.encode("Hello")
    assert tokenizer.decode(choice["token_ids"]) == choice["text"]
    assert [i for event in events for i in event["choices"][0].get("token_ids", [])] == choice["token_ids"]


async def test_prompt_logprobs(serve: Any, tokenizer: Any) -> None:
    async with serve() as server:
        choice = (await server.complete(prompt_logprobs=0)).json()["choices"][0]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert [next(iter(position)) for position in others] == [str(i) for i in tokenizer.encode("ello")]
    assert others[0] == {str(tokenizer.encode("e")[0]): {"logprob": -1.0, "rank": 1, "decoded_token": "e"}}
