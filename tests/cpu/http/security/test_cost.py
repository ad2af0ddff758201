"""Ten times the input costs at most twelve times the work, for everything that runs on what clients send.

Work is counted as executed lines of our own code, which is the same on every machine; what a library does in one of
these lines is measured by process time, with a generous bound, in the last test.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import quire
from quire.entrypoints.http.messages import template_messages
from quire.entrypoints.http.prompts import split_prompts
from quire.entrypoints.http.protocol import ChatBody, CompletionBody
from quire.frontend.control_tokens import ControlTokens
from quire.frontend.input_processor import InputProcessor
from quire.frontend.stop_strings import StopAutomaton

ROOT = str(Path(quire.__file__).parent)
MAX_RATIO = 12.0


def count_lines(work: Callable[[], Any]) -> int:
    """Lines of quire that `work` executes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def chat_json(size: int) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": f"message {n}"} for n in range(size)]}).encode()


def parts_json(size: int) -> bytes:
    parts = [{"type": "text", "text": "<|im_end|>"} for _ in range(size)]
    return json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()


def read_chat(raw: bytes) -> None:
    body = ChatBody.model_validate_json(raw)
    body.check()
    template_messages(body.messages)


def read_completion(raw: bytes) -> None:
    body = CompletionBody.model_validate_json(raw)
    body.check()
    split_prompts(body.prompt)


def find_control_tokens(size: int, text: str) -> Callable[[], Any]:
    control = ControlTokens(["<|im_start|>", "<|im_end|>", "<s>"])
    return lambda: control.break_up(text * size)


def match(text: str, stop: list[str]) -> None:
    automaton, state = StopAutomaton(stop), 0
    for character in text:
        state = automaton.advance(state, character)


WORK: dict[str, tuple[int, Callable[[int], Callable[[], Any]]]] = {
    "messages of a chat": (30, lambda size: lambda: read_chat(chat_json(size))),
    "parts of a message": (30, lambda size: lambda: read_chat(parts_json(size))),
    "token ids of a prompt": (300, lambda size: lambda: split_prompts([1] * size)),
    "prompts of a request": (30, lambda size: lambda: read_completion(json.dumps({"prompt": ["a"] * size}).encode())),
    "tokens with a bias": (
        30,
        lambda size: (
            lambda: read_completion(
                json.dumps({"prompt": "a", "logit_bias": {str(n): 1 for n in range(size)}}).encode()
            )
        ),
    ),
    "stop strings": (3, lambda size: lambda: StopAutomaton(["a" * 20 + str(n) for n in range(size)])),
    "length of a stop string": (20, lambda size: lambda: StopAutomaton(["a" * size + "b"])),
    "control tokens in a text": (50, lambda size: find_control_tokens(size, "<|im_end|>")),
    "halves of control tokens": (50, lambda size: find_control_tokens(size, "<|im_<|im_<|")),
    "a text against a stop string": (100, lambda size: lambda: match("a" * size, ["a" * 30 + "b"])),
}


@pytest.mark.parametrize("name", WORK)
def test_ten_times_the_input_takes_at_most_twelve_times_the_work(name: str) -> None:
    size, make = WORK[name]
    make(size)()
    small, large = count_lines(make(size)), count_lines(make(10 * size))
    assert small > 0
    assert large <= MAX_RATIO * small


CASES: dict[str, Callable[[InputProcessor, int], Any]] = {
    "a text": lambda processor, size: processor.process("hello world " * size, request_id="r"),
    "a text without spaces": lambda processor, size: processor.process("a" * 12 * size, request_id="r"),
    "control tokens": lambda processor, size: processor.tokenizer.encode("<|im_end|>" * size),
    "a chat": lambda processor, size: processor.encode_chat([{"role": "user", "content": "<|im_" * size}]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_time_of_libraries_grows_with_the_input(processor: InputProcessor, name: str) -> None:
    """A factor of 40 for ten times the input leaves room for a busy machine, and none for squares: they give 100."""
    wide = InputProcessor(
        processor.tokenizer, max_model_len=10_000_000, vocab_size=processor.vocab_size, template=processor.template
    )

    def seconds(size: int) -> float:
        times = []
        for _ in range(3):
            begin = time.process_time()
            CASES[name](wide, size)
            times.append(time.process_time() - begin)
        return min(times)

    seconds(10)
    small, large = seconds(300), seconds(3000)
    assert large <= 40 * max(small, 1e-4)
