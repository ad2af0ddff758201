"""Prompts for `quire generate`."""

import io
from pathlib import Path

import pytest

from quire.entrypoints.cli.generate import PromptOptions, collect_prompts
from quire.entrypoints.cli.prompt_file import PromptLine, read_prompt_file, stdin_prompt
from quire.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def test_every_kind_of_line(file: Path) -> None:
    file.write_text(
        '{"prompt": "a", "max_tokens": 5}\n\n'
        '{"prompt_token_ids": [1, 2], "logit_bias": {"7": 1.5}}\n'
        '{"messages": [{"role": "user", "content": "b"}]}\n'
    )
    assert read_prompt_file(file) == [
        PromptLine("a", [], {"max_tokens": 5}),
        PromptLine([1, 2], [], {"logit_bias": {7: 1.5}}),
        PromptLine("", [{"role": "user", "content": "b"}], {}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1 is not JSON"),
        ("[]", ":1 must be a JSON object"),
        ("{}", ":1 must have one of prompt, prompt_token_ids, messages, has none"),
        ('{"prompt": "a", "messages": []}', "has prompt, messages"),
        ('{"prompt": "a", "max_token": 1}', "unknown field 'max_token'"),
        ('{"prompt": "a", "output_kind": 1}', "unknown field 'output_kind'"),
        ('{"prompt": 5}', "prompt must be a string"),
        ('{"prompt_token_ids": [1, true]}', "prompt_token_ids must be a list of integers"),
        ('{"messages": []}', "messages must be a list of objects"),
    ],
)
def test_malformed_lines_are_named(file: Path, line: str, message: str) -> None:
    file.write_text(line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_prompt_file(file)
    assert message in caught.value.message


def test_a_file_that_cannot_be_used(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_prompt_file(file)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompt_file(file)


def test_the_standard_input_is_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stdin_prompt(io.StringIO("two\nlines\n")) == "two\nlines"
    with pytest.raises(ConfigError, match="no prompt"):
        stdin_prompt(io.StringIO(""))
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    assert collect_prompts(PromptOptions()) == [PromptLine("piped")]


def test_prompts_of_the_line_and_the_file_go_together(file: Path) -> None:
    file.write_text('{"prompt": "b"}\n')
    lines = collect_prompts(PromptOptions(prompt=("a",), file=str(file)))
    assert [line.prompt for line in lines] == ["a", "b"]


def test_chat_makes_questions_of_texts() -> None:
    lines = collect_prompts(PromptOptions(prompt=("hi",), chat=True, system_prompt="be brief"))
    assert lines[0].messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def test_what_does_not_go_together(file: Path) -> None:
    file.write_text('{"messages": [{"role": "user", "content": "b"}]}\n')
    with pytest.raises(ConfigError, match="texts and conversations are mixed"):
        collect_prompts(PromptOptions(prompt=("a",), file=str(file)))
    file.write_text('{"prompt_token_ids": [1]}\n')
    with pytest.raises(ConfigError, match="--chat needs texts or messages"):
        collect_prompts(PromptOptions(file=str(file), chat=True))
