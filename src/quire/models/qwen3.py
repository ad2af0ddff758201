"""Qwen3, dense."""

from quire.models.decoder import DecoderModel
from quire.models.placement import Placement


class Qwen3ForCausalLM(DecoderModel):
    """Every head of queries and keys is RMS-normed before rope, with one weight for all heads."""

    def _layer_tensor_map(self, source: str, target: str) -> dict[str, Placement]:
        return super()._layer_tensor_map(source, target) | {
            f"{source}.self_attn.q_norm.weight": self._whole(f"{target}.attention.query_norm.weight"),
            f"{source}.self_attn.k_norm.weight": self._whole(f"{target}.attention.key_norm.weight"),
        }
