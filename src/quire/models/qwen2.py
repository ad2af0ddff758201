"""Qwen2 and Qwen2.5."""

from quire.models.decoder import DecoderModel


class Qwen2ForCausalLM(DecoderModel):
    """The query, key and value projections have a bias; upper layers may have a sliding window."""
