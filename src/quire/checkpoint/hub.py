"""Downloads a model from the hub, or finds it in the hub's cache; only the files that are needed.

Token, cache folder, endpoint and offline mode are huggingface_hub's own: HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE. huggingface_hub is imported where it is used, because that takes a quarter of a second.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from quire.errors import CheckpointError, CheckpointNotFoundError

METADATA_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_NAME = re.compile(rf"(?P<repository>(?:{_PART}/)?{_PART})(?::(?P<selector>[\w.+-][\w.+/-]*))?")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How the hub is reached; None means huggingface_hub's default."""

    revision: str | None = None
    token: str | None = None
    download_dir: str | None = None


def is_hub_name(name: str) -> bool:
    """Whether a text reads "repository", "owner/repository" or "owner/repository:selector"."""
    return _HUB_NAME.fullmatch(name) is not None and ".." not in name


def download_model(name: str, access: HubAccess, *, with_weights: bool) -> Path:
    """Fetches what a model needs that is not in the cache yet.

    Args:
        name: "owner/repository"; or "owner/repository:Q4_K_M" or "...:file.gguf" for a GGUF file.
        access: Revision, token and folder.
        with_weights: Whether safetensors files are needed too; GGUF files always are.

    Returns:
        The folder with the files; for a GGUF file that file, the first where it is split.

    Raises:
        CheckpointNotFoundError: No such repository, revision or file; no access; or offline and not in the cache.
    """
    match = _HUB_NAME.fullmatch(name)
    assert match is not None, f"not a hub name: {name}"
    repository, selector = match["repository"], match["selector"]
    if selector is None:
        patterns = METADATA_FILES + (WEIGHT_FILES if with_weights else ())
        return _snapshot(repository, access, patterns, ignore=("*/*", "consolidated*", "adapter_*"))
    patterns = _gguf_patterns(selector)
    folder = _snapshot(repository, access, patterns)
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern)})
    if not found:
        raise CheckpointNotFoundError(
            f"{repository}: no GGUF file matches {selector!r}",
            hint=f"the files are listed at https://huggingface.co/{repository}/tree/main",
        )
    _check_one_model(name, found)
    return found[0]


def _gguf_patterns(selector: str) -> tuple[str, ...]:
    """File patterns for "model.Q4_0.gguf", or for a type such as "Q4_K_M" in either case."""
    if selector.endswith(".gguf"):
        stem = re.sub(r"-\d{5}-of-\d{5}\.gguf$", "-*-of-*.gguf", selector)
        return (stem if stem != selector else glob.escape(selector),)
    spellings = dict.fromkeys((selector, selector.upper(), selector.lower()))
    return tuple(
        f"*{separator}{glob.escape(spelling)}{ending}"
        for spelling in spellings
        for separator in "-."
        for ending in (".gguf", "-*-of-*.gguf")
    )


def _check_one_model(name: str, found: list[Path]) -> None:
    models = {re.sub(r"-\d{5}-of-\d{5}\.gguf$", "", path.name) for path in found}
    if len(models) > 1:
        raise CheckpointNotFoundError(
            f"{name} matches {len(models)} models: {', '.join(sorted(models)[:5])}",
            hint="name the file: owner/repository:file.gguf",
        )


def _snapshot(repository: str, access: HubAccess, patterns: tuple[str, ...], ignore: tuple[str, ...] = ()) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=access.revision,
            cache_dir=access.download_dir,
            token=access.token,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignore),
        )
    except Exception as error:
        raise _as_checkpoint_error(error, repository, access.revision) from error
    return Path(folder)


def _as_checkpoint_error(error: Exception, repository: str, revision: str | None) -> CheckpointError:
    """The hub's error with what to do about it. The HTTP client's own errors have no common type."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        message, hint = "is gated", f"accept its terms at https://huggingface.co/{repository} and give --hf-token"
    elif isinstance(error, RepositoryNotFoundError):
        message = "is neither a folder here nor a repository on the hub"
        hint = "check the spelling; a private repository needs --hf-token or HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        message, hint = f"has no revision {revision!r} on the hub", "give a branch, tag or commit as --revision"
    elif isinstance(error, (EntryNotFoundError, OfflineModeIsEnabled)):
        message = "is neither a folder here nor completely in the hub's cache, and the hub cannot be reached"
        hint = "check the network and HF_HUB_OFFLINE, or give a local folder"
    else:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        message, hint = f"could not be downloaded: {reason}", None
    return CheckpointNotFoundError(f"{repository} {message}", hint=hint, param="model")
