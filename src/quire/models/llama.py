"""Llama 1 to 3, and the many models that follow it (SmolLM2, Vicuna, Yi, ...)."""

from quire.models.decoder import DecoderModel


class LlamaForCausalLM(DecoderModel):
    """The plain decoder: biases where the config has them, any rope."""
