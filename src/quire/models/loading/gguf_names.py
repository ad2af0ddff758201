"""Hugging Face's names for the tensors of a GGUF file."""

import re

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_LAYER = re.compile(r"blk\.(?P<layer>\d{1,4})\.(?P<part>\w+)\.(?P<kind>weight|bias)")


def hf_name(gguf_name: str) -> str:
    """The name that Hugging Face has for a GGUF tensor; the name itself where it has none."""
    if gguf_name in _OUTER:
        return _OUTER[gguf_name]
    match = _LAYER.fullmatch(gguf_name)
    if match is None or match["part"] not in _IN_LAYER:
        return gguf_name
    return f"model.layers.{match['layer']}.{_IN_LAYER[match['part']]}.{match['kind']}"


def has_interleaved_heads(gguf_name: str) -> bool:
    """Whether llama's converter reordered the rows of this tensor for the interleaved form of rope."""
    match = _LAYER.fullmatch(gguf_name)
    return match is not None and match["part"] in ("attn_q", "attn_k")
