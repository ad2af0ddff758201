"""Mistral."""

from quire.models.decoder import DecoderModel


class MistralForCausalLM(DecoderModel):
    """Every layer sees a sliding window of positions (Mistral 7B v0.1), or all of them where the config says null."""
