"""`LLM` on the real small model: the forms of prompts, parameters, chats and outputs."""

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire.checkpoint.checkpoint import small_model_path
from quire.errors import CheckpointNotFoundError, ConfigError, InvalidRequestError, ParameterError, PromptTooLongError

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    try:
        path = small_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))
    engine = LLM(str(path), dtype="float32", max_model_len=512, use_tqdm_on_load=False)
    yield engine
    engine.shutdown()


def texts(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False)]


def test_all_forms_of_a_prompt_give_the_same_answer(llm: LLM) -> None:
    text = "The capital of France is"
    token_ids = llm.get_tokenizer().encode(text)
    forms = [text, token_ids, {"prompt": text}, {"prompt_token_ids": token_ids}]
    alone = [texts(llm, form) for form in forms]
    assert all(answer == alone[0] for answer in alone)
    assert texts(llm, forms) == [answer for (answer,) in alone]
    assert "Paris" in alone[0][0]


def test_outputs_keep_the_order_of_the_prompts_and_their_own_parameters(llm: LLM) -> None:
    prompts = [f"Number {number}:" for number in range(6)]
    params = [SamplingParams(temperature=0.0, max_tokens=12 - number, ignore_eos=True) for number in range(6)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [12, 11, 10, 9, 8, 7]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)


def test_refusals_come_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="sampling_params has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    with pytest.raises(PromptTooLongError, match="512"):
        llm.generate(["fine", [5] * 600], GREEDY, use_tqdm=False)
    with pytest.raises(ParameterError, match="logprobs"):
        llm.generate("a", SamplingParams(logprobs=21), use_tqdm=False)
    with pytest.raises(InvalidRequestError):
        llm.generate({"prompt": "a", "multi_modal_data": {}}, GREEDY, use_tqdm=False)
    assert texts(llm, "Water boils at")


def test_unknown_and_unbuilt_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option 'modle'"):
        LLM(modle="x")
    with pytest.raises(ConfigError, match="quantization"):
        LLM("x", quantization="gptq")


def test_a_chat_is_answered_through_the_template(llm: LLM) -> None:
    chat = [{"role": "user", "content": "Say hello."}]
    one = llm.chat(chat, GREEDY, use_tqdm=False)
    two = llm.chat([chat, chat], GREEDY, use_tqdm=False)
    assert one[0].prompt is not None
    assert "<|im_start|>user\nSay hello.<|im_end|>" in one[0].prompt
    assert [output.outputs[0].text for output in two] == [one[0].outputs[0].text] * 2


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    (full,) = texts(llm, "1, 2, 3,", SamplingParams(temperature=0.0, max_tokens=24))
    stop = full[8:10]
    params = SamplingParams(temperature=0.0, max_tokens=24, stop=stop)
    answer = llm.generate("1, 2, 3,", params, use_tqdm=False)[0].outputs[0]
    assert answer.text == full[: full.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    kept = params.with_changes(include_stop_str_in_output=True)
    assert texts(llm, "1, 2, 3,", kept) == [answer.text + stop]


def test_logprobs_of_prompt_and_answer(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    output = llm.generate("The sea is", params, use_tqdm=False)[0]
    answer = output.outputs[0]
    assert answer.logprobs is not None
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token_id, entries in zip(answer.token_ids, answer.logprobs, strict=True):
        assert entries[token_id].rank == 1
        assert len(entries) == 3
        assert sum(math.exp(entry.logprob) for entry in entries.values()) <= 1.0 + 1e-5
    total = sum(entries[token_id].logprob for token_id, entries in zip(answer.token_ids, answer.logprobs, strict=True))
    assert answer.cumulative_logprob == pytest.approx(total, abs=1e-5)


def test_best_of_returns_the_most_likely_answers(llm: LLM) -> None:
    everything = SamplingParams(n=4, seed=11, max_tokens=6, ignore_eos=True, logprobs=0)
    all_four = llm.generate("Once upon a time", everything, use_tqdm=False)[0].outputs
    best = everything.with_changes(n=2, best_of=4)
    chosen = llm.generate("Once upon a time", best, use_tqdm=False)[0].outputs
    ranked = sorted(all_four, key=lambda answer: -(answer.cumulative_logprob or 0.0))
    assert [answer.token_ids for answer in chosen] == [answer.token_ids for answer in ranked[:2]]


def test_importing_quire_loads_nothing_heavy() -> None:
    code = "import sys, quire; print(sorted({'torch', 'numpy', 'fastapi', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
