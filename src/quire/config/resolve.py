"""Turns what a user left open into numbers."""

import logging
from dataclasses import replace

from quire.config.engine import EngineConfig
from quire.errors import ConfigError

logger = logging.getLogger("quire.config")

# (sequences, tokens) of a step. Offline use is after throughput, a server also after short steps.
OFFLINE_LIMITS = {"cpu": (256, 4096), "cuda": (1024, 16384)}
SERVER_LIMITS = {"cpu": (128, 2048), "cuda": (1024, 8192)}


def resolve(config: EngineConfig, *, context_length: int, device: str, serving: bool) -> EngineConfig:
    """A copy of `config` with device, context and step limits filled in; logs them.

    Args:
        config: As the user gave it.
        context_length: The longest context the model was made for, in tokens.
        device: "cpu" or "cuda", what "auto" means on this machine.
        serving: Whether requests come one by one over HTTP.

    Raises:
        ConfigError: A context longer than the model's.
    """
    wanted = config.model.max_model_len
    if wanted is not None and wanted > context_length:
        raise ConfigError(
            f"max_model_len {wanted} exceeds the {context_length} tokens that the model was made for",
            hint=f"use --max-model-len {context_length} or less",
            param="max_model_len",
        )
    max_model_len = wanted or context_length
    num_seqs, num_tokens = (SERVER_LIMITS if serving else OFFLINE_LIMITS)[device]
    max_num_seqs = config.scheduler.max_num_seqs or num_seqs
    max_num_batched_tokens = config.scheduler.max_num_batched_tokens or max(num_tokens, max_num_seqs)
    resolved = replace(
        config,
        model=replace(config.model, max_model_len=max_model_len),
        scheduler=replace(config.scheduler, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens),
        device=replace(config.device, device=device),
    )
    logger.info(
        "device %s, context %d tokens, at most %d sequences and %d tokens per step",
        device,
        max_model_len,
        max_num_seqs,
        max_num_batched_tokens,
    )
    return resolved
