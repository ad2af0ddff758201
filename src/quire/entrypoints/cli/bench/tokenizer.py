"""A tokenizer for counting; loaded only where it is asked for."""

from quire.config.model import ModelConfig
from quire.entrypoints.cli.bench.datasets import TokenCounter


def load_token_counter(model: str) -> TokenCounter:
    """The tokenizer of a model, by folder, hub id or GGUF file. Reads no weights.

    Raises:
        CheckpointError: There is no such model, or it has no tokenizer.
    """
    from quire.checkpoint.checkpoint import open_checkpoint
    from quire.frontend.tokenizer import load_tokenizer

    return load_tokenizer(open_checkpoint(ModelConfig(model=model, load_format="dummy")).tokenizer)
