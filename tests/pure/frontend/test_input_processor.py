"""What is accepted, what is refused with which words, and what is filled in."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.errors import ConfigError, InvalidRequestError, ParameterError, PromptTooLongError
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.input_processor import InputProcessor, ProcessedInput, Prompt
from quire.frontend.tokenizer import Tokenizer
from quire.types.sampling import SamplingParams

Make = Callable[..., InputProcessor]
PLAIN = SamplingParams(max_tokens=4, seed=1)


@pytest.fixture
def make(tokenizer: Tokenizer) -> Make:
    def make_input_processor(**changes: Any) -> InputProcessor:
        options: dict[str, Any] = {"max_model_len": 64, "vocab_size": 512, "clock": lambda: 5.0}
        return InputProcessor(tokenizer, **{**options, **changes})

    return make_input_processor


def process(processor: InputProcessor, prompt: Prompt = "hello", **params: Any) -> ProcessedInput:
    return processor.process(prompt, SamplingParams(**{"max_tokens": 4, "seed": 1, **params}), request_id="r")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("the fox", "the fox"),
        ({"prompt": "the fox", "cache_salt": None}, "the fox"),
        ({"prompt": "shown", "prompt_token_ids": (5, 6)}, "shown"),
        ({"prompt_token_ids": [5, 6]}, None),
        ([5, 6], None),
        ((5, 6), None),
    ],
)
def test_every_form_of_prompt(make: Make, tokenizer: Tokenizer, prompt: Prompt, text: str | None) -> None:
    processed = process(make(), prompt)
    assert processed.prompt == text
    assert processed.request.prompt_token_ids == (tokenizer.encode("the fox") if text == "the fox" else [5, 6])
    assert (processed.request.request_id, processed.request.arrival_time) == ("r", 5.0)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ({"prompt_token_ids": []}, "prompt"),
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "prompt_embeds": [1]}, "prompt_embeds"),
        ({"text": "a"}, "text"),
        ([1.5], "prompt"),
        ([True], "prompt"),
        (["a"], "prompt"),
        (b"ab", "prompt"),
        (3, "prompt"),
        ([5, 512], "prompt"),
        ([-1], "prompt"),
        ({"prompt_token_ids": "ab"}, "prompt_token_ids"),
        ({"prompt": "a", "cache_salt": "a/b"}, "cache_salt"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
        ({"prompt": "a", "cache_salt": "x" * 129}, "cache_salt"),
        ({"prompt": "a", "cache_salt": 3}, "cache_salt"),
    ],
)
def test_malformed_prompts_are_refused(make: Make, prompt: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        process(make(), prompt)
    assert failure.value.param == param


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(make: Make) -> None:
    assert process(make(), [5] * 63).params.max_tokens == 1
    with pytest.raises(PromptTooLongError, match=r"64 tokens; .* limit of 64 tokens allows 63") as failure:
        process(make(), [5] * 64)
    assert failure.value.param == "prompt"


@pytest.mark.parametrize(("asked", "given"), [(None, 54), (4, 4), (54, 54), (1000, 54)])
def test_max_tokens_is_filled_in_and_kept_within_the_context(make: Make, asked: int | None, given: int) -> None:
    processed = process(make(), [5] * 10, max_tokens=asked)
    assert processed.request.sampling.max_tokens == processed.params.max_tokens == given


def test_min_tokens_is_checked_against_the_room(make: Make) -> None:
    with pytest.raises(ParameterError, match="max_tokens=1"):
        process(make(), [5] * 63, max_tokens=None, min_tokens=2)


def test_requests_without_a_seed_get_different_ones_that_the_engines_seed_decides(make: Make) -> None:
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    seeds = [process(first, seed=None).request.sampling.seed for _ in range(3)]
    assert len(set(seeds)) == 3
    assert seeds == [process(again, seed=None).request.sampling.seed for _ in range(3)]
    assert seeds[0] != process(other, seed=None).request.sampling.seed
    assert process(first, seed=7).request.sampling.seed == 7


def test_end_tokens_come_from_tokenizer_and_model(make: Make) -> None:
    processor = make(eos_token_ids=[9, 2, 512])
    assert process(processor).request.eos_token_ids == (2, 9)
    assert process(processor, ignore_eos=True).request.eos_token_ids == ()


def test_bad_words_are_banned_with_and_without_a_space(make: Make, tokenizer: Tokenizer) -> None:
    sequences = process(make(), bad_words=["fox", " dog", " "]).request.bad_words_token_ids
    texts = ["fox", " fox", "dog", " dog", " "]
    assert list(sequences) == [tuple(tokenizer.encode(text)) for text in texts]
    with pytest.raises(ParameterError, match="4096 tokens"):
        process(make(), bad_words=[chr(200 + i) * 100 for i in range(30)])


@pytest.mark.parametrize(
    "params", [{"logit_bias": {512: 1.0}}, {"allowed_token_ids": [3, 512]}, {"stop_token_ids": [512]}]
)
def test_token_ids_are_checked_against_the_vocabulary(make: Make, params: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="512") as failure:
        process(make(), **params)
    assert failure.value.param == next(iter(params))


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_logprobs_are_limited(make: Make, name: str) -> None:
    def asked(value: int, **options: Any) -> int:
        params: dict[str, Any] = {name: value}
        given: int = getattr(process(make(**options), "hello", **params).params, name)
        return given

    assert asked(20) == 20
    for value in (21, -1):
        with pytest.raises(ParameterError, match="max_logprobs=20") as failure:
            asked(value)
        assert failure.value.param == name
    for limit in (-1, 512):
        assert asked(-1, max_logprobs=limit) == -1


def test_best_of_has_the_engine_report_what_choosing_needs(make: Make) -> None:
    processed = process(make(), n=1, best_of=2)
    assert (processed.params.logprobs, processed.request.sampling.logprobs) == (None, 0)
    assert process(make(), n=2).request.sampling.logprobs is None


def test_defaults_come_from_the_model(make: Make) -> None:
    processor = make(generation_defaults={"temperature": 0.6, "top_p": 0.9, "max_tokens": 7})
    processed = processor.process("hello", request_id="r")
    assert (processed.params.temperature, processed.params.top_p, processed.params.max_tokens) == (0.6, 0.9, 7)
    assert make().default_sampling_params().temperature == 1.0
    with pytest.raises(ConfigError, match=r"generation_config.json: temperature must be"):
        make(generation_defaults={"temperature": -1.0})


def test_salts_of_prompt_and_caller(make: Make) -> None:
    processor = make()
    assert processor.process("a", PLAIN, request_id="r").request.cache_salt == ""
    assert processor.process("a", PLAIN, request_id="r", cache_salt="x").request.cache_salt == "x"
    prompt = {"prompt": "a", "cache_salt": "y"}
    assert processor.process(prompt, PLAIN, request_id="r", cache_salt="x").request.cache_salt == "y"


def test_request_ids_have_a_length(make: Make) -> None:
    for request_id in ("", "x" * 257):
        with pytest.raises(ParameterError, match="request_id"):
            make().process("a", PLAIN, request_id=request_id)


def test_control_tokens_in_a_whole_prompt_are_control_tokens(make: Make, tokenizer: Tokenizer) -> None:
    ids = process(make(), "<|im_start|>hello").request.prompt_token_ids
    assert tokenizer.is_special(ids[0])


def test_chats_need_a_template(make: Make, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    template = ChatTemplate("{{ messages[0].content }}<|im_end|>")
    assert make(template=template).encode_chat(messages).token_ids == tokenizer.encode("hello<|im_end|>")
    assert make().encode_chat(messages, template=template).text == "hello<|im_end|>"
    with pytest.raises(InvalidRequestError, match="no chat template") as failure:
        make().encode_chat(messages)
    assert "--chat-template" in str(failure.value.hint)
    with pytest.raises(InvalidRequestError, match="does not compile"):
        make(template_problem="the chat template does not compile: x").encode_chat(messages)


def test_a_priority_needs_the_priority_policy(make: Make) -> None:
    with pytest.raises(ParameterError, match="priority must be 0 with the fcfs policy, got 3"):
        make().process("hello", PLAIN, request_id="r", priority=3)
    assert make(allows_priority=True).process("hello", PLAIN, request_id="r", priority=3).request.priority == 3
