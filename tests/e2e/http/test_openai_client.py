"""What a user of the official client sees."""

import asyncio
from typing import Any

import openai
import pytest

QUESTION: Any = [{"role": "user", "content": "Name three colours."}]


def test_models(client: openai.OpenAI, server: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == server.model
    assert model.max_model_len == 1024  # type: ignore[attr-defined]


def test_chat(client: openai.OpenAI, server: Any) -> None:
    answer = client.chat.completions.create(model=server.model, messages=QUESTION, max_tokens=12, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 12


def test_stream_equals_the_whole_answer(client: openai.OpenAI, server: Any) -> None:
    arguments: Any = {"model": server.model, "messages": QUESTION, "max_tokens": 12, "seed": 4, "temperature": 0.8}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_asynchronous_client_with_several_samples(server: Any) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=server.model, messages=QUESTION, max_tokens=8, n=2, seed=1, temperature=1.0, stream=True
            )
            texts = ["", ""]
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            return texts

    texts = asyncio.run(ask())
    assert all(texts)
    assert texts[0] != texts[1]


def test_completion_with_logprobs_and_echo(client: openai.OpenAI, server: Any) -> None:
    answer = client.completions.create(
        model=server.model, prompt="The capital of France is", max_tokens=3, temperature=0, logprobs=2, echo=True
    )
    (choice,) = answer.choices
    assert choice.text.startswith("The capital of France is")
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.top_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    for chosen, top in zip(choice.logprobs.token_logprobs[-3:], choice.logprobs.top_logprobs[-3:], strict=True):
        assert chosen == max(top.values())
        assert len(top) == 2


def test_list_of_prompts_and_stop(client: openai.OpenAI, server: Any) -> None:
    prompts = ["A, B, C,", "1, 2, 3,"]
    answer = client.completions.create(model=server.model, prompt=prompts, max_tokens=12, temperature=0, stop=[","])
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all("," not in choice.text for choice in answer.choices)
    alone = client.completions.create(model=server.model, prompt=prompts[1], max_tokens=12, temperature=0, stop=[","])
    assert alone.choices[0].text == answer.choices[1].text


def test_same_seed_same_answer(client: openai.OpenAI, server: Any) -> None:
    def draw(seed: int) -> str:
        answer = client.completions.create(model=server.model, prompt="My dog", max_tokens=12, seed=seed)
        return answer.choices[0].text

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_repeated_prompt_comes_from_the_cache(client: openai.OpenAI, server: Any) -> None:
    prompt = "A sentence that nobody else uses, said again and again. " * 6
    for cached in (False, True):
        usage = client.completions.create(model=server.model, prompt=prompt, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert bool(usage.prompt_tokens_details.cached_tokens) == cached


@pytest.mark.parametrize("stream", [False, True])
def test_errors_name_the_parameter(client: openai.OpenAI, server: Any, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=QUESTION, temperature=5, stream=stream)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt="too long " * 1024, stream=stream)
    assert caught.value.param == "prompt"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=QUESTION, stream=stream)
    assert missing.value.param == "model"


def test_metrics(client: openai.OpenAI, server: Any) -> None:
    before = server.wait_until_idle()
    client.completions.create(model=server.model, prompt="Counting:", max_tokens=5, extra_body={"ignore_eos": True})
    after = server.wait_until_idle()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["quire:generation_tokens_total"] == 5
    assert grown["quire:request_success_total"] == 1
    assert grown["quire:time_to_first_token_seconds_count"] == 1
    assert grown["quire:inter_token_latency_seconds_count"] >= 1
    assert grown["quire:e2e_request_latency_seconds_count"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_everything(server: Any, stream: bool) -> None:
    before = server.wait_until_idle()

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            request = client.completions.create(
                model=server.model, prompt="On and on", max_tokens=900, stream=stream, extra_body={"ignore_eos": True}
            )
            if stream:
                async for _ in await request:
                    break
                return
            task = asyncio.ensure_future(request)
            while server.metrics()["quire:num_requests_running"] < 1:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.02)
            task.cancel()

    asyncio.run(leave())
    after = server.wait_until_idle()
    assert after["quire:generation_tokens_total"] - before["quire:generation_tokens_total"] < 900
