"""vLLM's options that are not built: accepted where they ask for the usual, otherwise refused by name."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from quire.config.compatibility import UNBUILT, UNBUILT_ALIASES, UNBUILT_CHOICES
from quire.config.engine import EngineConfig
from quire.config.option import options_of
from quire.config.server import ServerConfig
from quire.entrypoints.cli.bench.serve import COMMAND as BENCH_SERVE
from quire.entrypoints.cli.command_line import ENGINE_GROUPS
from quire.entrypoints.cli.main import COMMANDS, load_command
from quire.entrypoints.cli.serve import COMMAND as SERVE
from quire.entrypoints.http.answer_formats import choose_formats
from quire.errors import ConfigError
from quire.frontend.answer.formats import tool_format

# The commands of the documents that describe vLLM, and which of their options are not built.
SERVE_COMMANDS = [
    (
        "/opt/Qwen3-32B --max-num-batched-tokens 1024 --max-model-len 3096 --tensor-parallel-size 1 "
        "--served-model-name qwen3-32B --max-num-seqs 5 --enable-chunked-prefill --gpu-memory-utilization 0.85 "
        "--enable-auto-tool-choice --tool-call-parser hermes --load_format bitsandbytes "
        "--quantization bitsandbytes --swap-space 32 --port 8008",
        ["--load-format bitsandbytes", "--quantization bitsandbytes", "--swap-space 32"],
    ),
    ("--model Qwen/Qwen2.5-7B-Instruct --port 8000", []),
    ("--model Qwen/Qwen2.5-7B-Instruct --port 8000 --tensor-parallel-size 2", ["--tensor-parallel-size 2"]),
    ("--model Qwen/Qwen2.5-7B-Instruct --quantization awq", ["--quantization awq"]),
    ("m --enable-lora --lora-modules name1=path1 name2=path2", ["--enable-lora", "--lora-modules name1=path1"]),
    ("m --speculative-model draft", ["--speculative-model draft"]),
    ("meta-llama/Llama-3.1-8B-Instruct --dtype auto --api-key token-abc123", []),
    (
        "meta-llama/Llama-3.1-8B-Instruct --host 0.0.0.0 --port 8000 --max-model-len 4096 "
        "--gpu-memory-utilization 0.90 --dtype auto",
        [],
    ),
]


@pytest.mark.parametrize(("line", "refused"), SERVE_COMMANDS)
def test_the_documents_commands(line: str, refused: list[str]) -> None:
    words = shlex.split(line)
    if not refused:
        SERVE.parse(words).make_engine_config()
        return
    with pytest.raises(ConfigError, match="not built in this version of quire") as caught:
        SERVE.parse(words)
    assert all(flag in caught.value.message for flag in refused)
    assert caught.value.message.count("--") == len(refused)
    assert caught.value.hint


def test_the_documents_tool_options_are_built() -> None:
    server = SERVE.parse(["m", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]).make(ServerConfig)
    assert server.enable_auto_tool_choice
    assert choose_formats(server, None).tools is tool_format("hermes")
    with pytest.raises(ConfigError, match="hermes"):
        choose_formats(replace(server, tool_call_parser="hermse"), None)
    with pytest.raises(ConfigError, match="how the model writes tool calls"):
        choose_formats(replace(server, tool_call_parser=None), "no tools in this template")


def test_the_documents_benchmark_command() -> None:
    line = "--backend vllm --model meta-llama/Llama-3.1-8B-Instruct --num-prompts 100 --input-len 512 --output-len 128"
    values = BENCH_SERVE.parse(shlex.split(line)).values
    assert values["num_prompts"] == 100
    assert values["input_len"] == 512


@pytest.mark.parametrize(
    "line",
    [
        "-tp 1",
        "-tp=1",
        "--tensor_parallel_size=1",
        "--pipeline-parallel-size 1",
        "-pp 1 -dp 1",
        "--swap-space 0",
        "--swap-space 0.0",
        "--no-enable-lora",
        "--async-scheduling",
        "--disable-custom-all-reduce",
        "--no-disable-custom-all-reduce",
        "--enable-server-load-tracking",
        "-O0",
        "--distributed-executor-backend mp",
    ],
)
def test_what_asks_for_the_usual_passes(line: str) -> None:
    assert SERVE.parse(["m", *shlex.split(line)]).values == {"model": "m"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("-tp 2", "--tensor-parallel-size 2"),
        ("-q awq", "--quantization awq"),
        ("--enable-lora", "--enable-lora"),
        ("--no-async-scheduling", "--no-async-scheduling"),
        ("--compilation-config.mode 3", "--compilation-config"),
        ("-cc.mode=3", "--compilation-config 3"),
        ("--load-format bitsandbytes", "--load-format bitsandbytes"),
        ("--kv-cache-dtype fp8", "--kv-cache-dtype fp8"),
        ("--max-cudagraph-capture-size 64", "--max-cudagraph-capture-size 64"),
        ("--profiler-config.profiler torch", "--profiler-config"),
    ],
)
def test_anything_else_is_refused_by_name(line: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SERVE.parse(["m", *shlex.split(line)])
    assert caught.value.message.startswith("not built in this version of quire: " + shown)
    assert caught.value.hint


@pytest.mark.parametrize(
    "arguments", [{"tensor_parallel_size": 1}, {"swap_space": 0.0, "async_scheduling": True}, {"quantization": None}]
)
def test_python_arguments_that_ask_for_the_usual_pass(arguments: dict[str, Any]) -> None:
    assert EngineConfig.from_options(model="m", **arguments) == EngineConfig.from_options(model="m")


def test_python_arguments_are_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_options(model="m", quantization="gptq", tensor_parallel_size=2)
    expected = "not built in this version of quire: quantization='gptq', tensor_parallel_size=2"
    assert caught.value.message == expected


def test_the_table_and_the_options_are_apart() -> None:
    built = {name for option_class in ENGINE_GROUPS.values() for name in options_of(option_class)}
    assert not built & UNBUILT.keys()
    assert set(UNBUILT_ALIASES.values()) <= UNBUILT.keys()
    assert UNBUILT_CHOICES.keys() <= built
    choices = {flag.name: flag.option.choices for flag in SERVE.flags}
    assert not any(set(unbuilt.refused) & set(choices[option]) for option, unbuilt in UNBUILT_CHOICES.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_spelling_is_used_twice(name: str) -> None:
    command = load_command(name).COMMAND
    spellings = [spelling for flag in command.flags for spelling in flag.spellings]
    assert len(spellings) == len(set(spellings))
    names = [flag.name for flag in command.flags]
    assert len(names) == len(set(names))
