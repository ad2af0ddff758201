"""`quire generate`: prompts through a model in this process."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from quire.config.option import option
from quire.entrypoints.cli.command_line import ENGINE_GROUPS, Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.prompt_file import PromptLine, read_prompt_file, stdin_prompt
from quire.entrypoints.cli.sampling_options import SamplingOptions, apply_sampling
from quire.entrypoints.cli.terminal import configure_logging
from quire.errors import ConfigError
from quire.types.outputs import CompletionOutput, RequestOutput

if TYPE_CHECKING:
    from quire.entrypoints.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What is continued, and where the answers go."""

    prompt: tuple[str, ...] = option(
        (), basic=True, aliases=("-p",), help="Text to continue; repeatable. Without one it is read from the input."
    )
    file: str | None = option(
        None,
        basic=True,
        help="JSONL file: per line prompt, prompt_token_ids or messages, and any sampling option.",
    )
    chat: bool = option(False, basic=True, help="Treat each text as a question to the assistant.")
    system_prompt: str | None = option(None, help="With --chat: what the model is told before the question.")
    json: bool = option(False, basic=True, help="Write one JSON object per prompt instead of the text.")
    output: str | None = option(None, help="File to write to instead of the standard output.")
    progress: bool = option(False, help="Show a progress bar on standard error.")


COMMAND = CommandLine(
    name="generate",
    summary="Run prompts through a model in this process and print the answers.",
    groups={"prompt": PromptOptions, "sampling": SamplingOptions, **ENGINE_GROUPS, "general": GeneralOptions},
    bare_word="model",
    examples=(
        'quire generate --prompt "The capital of France is" --max-tokens 8 --temperature 0',
        'quire generate --chat --prompt "Why is the sky blue?"',
        "quire generate org/model --file prompts.jsonl --json --output answers.jsonl",
    ),
)


def run(arguments: Arguments) -> int:
    """Reads all prompts, runs them together and writes the answers in their order.

    Raises:
        QuireError: A prompt or option is refused, or the model cannot be loaded.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    options, sampling = arguments.make(PromptOptions), arguments.make(SamplingOptions)
    lines = collect_prompts(options)
    _check_writable(options.output)
    from quire.entrypoints.llm import LLM

    llm = LLM(**({"use_tqdm_on_load": options.progress} | arguments.engine_options()))
    try:
        outputs = _generate(llm, lines, sampling, use_tqdm=options.progress)
    finally:
        llm.shutdown()
    if options.output is None:
        _write(sys.stdout, lines, outputs, as_json=options.json)
    else:
        with Path(options.output).open("w", encoding="utf-8") as stream:
            _write(stream, lines, outputs, as_json=options.json)
    return 0


def collect_prompts(options: PromptOptions) -> list[PromptLine]:
    """The prompts of the command line, the file, or the standard input.

    Raises:
        ConfigError: There is none, or a line of the file is malformed.
    """
    if options.system_prompt is not None and not options.chat:
        raise ConfigError("--system-prompt needs --chat", param="system_prompt")
    lines = [PromptLine(prompt=text) for text in options.prompt]
    if options.file is not None:
        lines += read_prompt_file(Path(options.file))
    if not lines:
        lines = [PromptLine(prompt=stdin_prompt(sys.stdin))]
    if options.chat:
        lines = [line.as_chat(options.system_prompt) for line in lines]
    if len({bool(line.messages) for line in lines}) > 1:
        raise ConfigError("texts and conversations are mixed", hint="--chat makes every text a conversation")
    return lines


def _check_writable(path: str | None) -> None:
    """Notices before a model is loaded that the answers have nowhere to go."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"cannot write {path}: its folder does not exist", param="output")


def _generate(
    llm: "LLM", lines: Sequence[PromptLine], sampling: SamplingOptions, *, use_tqdm: bool
) -> list[RequestOutput]:
    defaults = apply_sampling(llm.get_default_sampling_params(), sampling)
    params = [defaults.with_changes(**line.sampling) for line in lines]
    if lines[0].messages:
        return llm.chat([line.messages for line in lines], params, use_tqdm=use_tqdm)
    prompts: list[str | list[int]] = [line.prompt for line in lines]
    return llm.generate(prompts, params, use_tqdm=use_tqdm)


def _write(stream: TextIO, lines: Sequence[PromptLine], outputs: Sequence[RequestOutput], *, as_json: bool) -> None:
    for line, output in zip(lines, outputs, strict=True):
        if as_json:
            print(json.dumps(describe(line, output), ensure_ascii=False), file=stream)
        else:
            stream.writelines(f"{answer.text}\n" for answer in output.outputs)
    stream.flush()


def describe(line: PromptLine, output: RequestOutput) -> dict[str, Any]:
    """One line of the JSON output: what was asked, and the answers."""
    return _question(line) | {
        "num_prompt_tokens": len(output.prompt_token_ids),
        "num_cached_tokens": output.num_cached_tokens,
        "outputs": [_describe_answer(answer) for answer in output.outputs],
    }


def _question(line: PromptLine) -> dict[str, Any]:
    if line.messages:
        return {"messages": line.messages}
    return {"prompt" if isinstance(line.prompt, str) else "prompt_token_ids": line.prompt}


def _describe_answer(answer: CompletionOutput) -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }
    if answer.logprobs is not None:
        values["cumulative_logprob"] = answer.cumulative_logprob
        values["logprobs"] = [
            [{"token_id": token_id, **asdict(entry)} for token_id, entry in position.items()]
            for position in answer.logprobs
        ]
    return values
