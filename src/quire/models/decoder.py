"""The decoder-only transformer that all architectures here are variants of."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from quire.checkpoint.architecture import ModelArchitecture
from quire.kernels.linear import PackedWeight
from quire.layers.attention import AttentionShape
from quire.layers.decoder_layer import DecoderLayer
from quire.layers.embedding import Embedding
from quire.layers.forward_batch import ForwardBatch
from quire.layers.linear import Linear
from quire.layers.logits import LogitsHead
from quire.layers.norm import RMSNorm
from quire.models.placement import Placement
from quire.models.rope import make_rotary_embedding


class DecoderModel(nn.Module):
    """Embedding, layers, norm, output projection.

    Parameters are uninitialised: fill them in by `tensor_map`, then `finish_loading`, then `forward`.

    Args:
        dtype: Of weights and activations.
        device: "meta" takes no memory.
        max_model_len: Tokens of the longest sequence; see `create_model`.
    """

    def __init__(
        self,
        architecture: ModelArchitecture,
        *,
        dtype: torch.dtype,
        device: str = "meta",
        max_model_len: int | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.dtype = dtype
        vocab_size, hidden_size = architecture.vocab_size, architecture.hidden_size
        self.embedding = Embedding(vocab_size, hidden_size, dtype=dtype, device=device)
        layers = [self._make_layer(i, dtype=dtype, device=device) for i in range(architecture.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self._layers = tuple(layers)
        self.norm = RMSNorm(hidden_size, architecture.rms_norm_eps, dtype=dtype, device=device)
        self.logits = LogitsHead(
            vocab_size, hidden_size, is_tied=architecture.tie_word_embeddings, dtype=dtype, device=device
        )
        self.rotary = make_rotary_embedding(architecture, max_model_len=max_model_len)
        self.sliding_windows = tuple(dict.fromkeys(architecture.sliding_windows))
        self.is_ready = False

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Runs a step. Writes its keys and values into the batch's caches, fills in the rotation.

        Returns:
            [N, hidden]: normed final hidden states of `batch.logit_rows`.
        """
        if not self.is_ready:
            self.finish_loading()
        stream = self.embedding.forward(batch.token_ids)
        batch.rotation = self.rotary.tables(batch.positions, stream.dtype)
        *layers, last_layer = self._layers
        for layer in layers:
            layer.forward(stream, batch)
        return self.norm.forward(last_layer.forward(stream, batch, batch.logit_rows))

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, vocab] float32, a new tensor."""
        return self.logits.forward(hidden)

    def products(self, num_tokens: int) -> list[Callable[[], object]]:
        """The matrix products of a step of so many tokens, one of each kind, on zeros: to compile their kernels."""
        layer, architecture = self._layers[0], self.architecture
        stream = self.norm.weight.new_zeros(num_tokens, architecture.hidden_size)
        width = architecture.num_attention_heads * architecture.head_dim
        attended = stream.new_zeros(num_tokens, width)
        gated = stream.new_zeros(num_tokens, architecture.intermediate_size)
        return [
            lambda: layer.attention.qkv.forward(stream, norm=layer.attention_norm),
            lambda: layer.attention.output.forward(attended, add_to=torch.zeros_like(stream)),
            lambda: layer.mlp.gate_up.forward(stream, norm=layer.mlp_norm, gated=True),
            lambda: layer.mlp.down.forward(gated, add_to=torch.zeros_like(stream)),
            lambda: self.compute_logits(stream),
        ]

    def tensor_map(self) -> dict[str, Placement]:
        """Where each tensor of a checkpoint in Transformers' naming goes; all of them must be there.

        A checkpoint of a tied model may hold "lm_head.weight" as well: a copy of the embedding, not needed.
        """
        places = {
            "model.embed_tokens.weight": self._whole("embedding.weight"),
            "model.norm.weight": self._whole("norm.weight"),
        }
        if not self.architecture.tie_word_embeddings:
            places["lm_head.weight"] = self._whole("logits.weight")
        for index in range(self.architecture.num_hidden_layers):
            places |= self._layer_tensor_map(f"model.layers.{index}", f"layers.{index}")
        return places

    def finish_loading(self) -> None:
        """Moves the weights into the layouts that the kernels want, one by one. Their parameters are gone then.

        Called by whoever has filled them in; otherwise by the first step.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.finish_loading()
        self.logits.finish_loading(self.embedding)
        self.rotary = self.rotary.to(self.norm.weight.device)
        self.is_ready = True

    def num_weight_bytes(self) -> int:
        """Memory of all weights in their present layout."""
        parameters = sum(parameter.numel() * parameter.itemsize for parameter in self.parameters())
        return parameters + sum(packed.num_bytes for packed in self._packed_weights())

    def _packed_weights(self) -> Iterator[PackedWeight]:
        for module in self.modules():
            packed = module.packed if isinstance(module, (Linear, LogitsHead, Embedding)) else None
            if packed is not None and not (module is self.logits and packed is self.embedding.packed):
                yield packed

    def _make_layer(self, index: int, *, dtype: torch.dtype, device: str) -> DecoderLayer:
        architecture = self.architecture
        shape = AttentionShape(
            hidden_size=architecture.hidden_size,
            num_heads=architecture.num_attention_heads,
            num_kv_heads=architecture.num_key_value_heads,
            head_dim=architecture.head_dim,
            bias=architecture.attention_bias,
            output_bias=architecture.attention_output_bias,
            qk_norm_epsilon=architecture.rms_norm_eps if architecture.qk_norm else None,
            sliding_window=architecture.sliding_windows[index],
        )
        return DecoderLayer(
            shape,
            index,
            intermediate_size=architecture.intermediate_size,
            mlp_bias=architecture.mlp_bias,
            epsilon=architecture.rms_norm_eps,
            dtype=dtype,
            device=device,
        )

    def _layer_tensor_map(self, source: str, target: str) -> dict[str, Placement]:
        """Tensors of one layer; `source` and `target` are its names in the checkpoint and here."""
        architecture = self.architecture
        width = architecture.num_attention_heads * architecture.head_dim
        kv_width = architecture.num_key_value_heads * architecture.head_dim
        gate_width = architecture.intermediate_size
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        places = {
            f"{source}.input_layernorm.weight": self._whole(f"{target}.attention_norm.weight"),
            f"{source}.post_attention_layernorm.weight": self._whole(f"{target}.mlp_norm.weight"),
        }
        for kind in ("weight", "bias") if architecture.attention_bias else ("weight",):
            qkv = f"{target}.attention.qkv.{kind}"
            places[f"{attention}.q_proj.{kind}"] = Placement(qkv, 0, width)
            places[f"{attention}.k_proj.{kind}"] = Placement(qkv, width, kv_width)
            places[f"{attention}.v_proj.{kind}"] = Placement(qkv, width + kv_width, kv_width)
        for kind in ("weight", "bias") if architecture.attention_output_bias else ("weight",):
            places[f"{attention}.o_proj.{kind}"] = self._whole(f"{target}.attention.output.{kind}")
        for kind in ("weight", "bias") if architecture.mlp_bias else ("weight",):
            places[f"{mlp}.gate_proj.{kind}"] = Placement(f"{target}.mlp.gate_up.{kind}", 0, gate_width)
            places[f"{mlp}.up_proj.{kind}"] = Placement(f"{target}.mlp.gate_up.{kind}", gate_width, gate_width)
            places[f"{mlp}.down_proj.{kind}"] = self._whole(f"{target}.mlp.down.{kind}")
        return places

    def _whole(self, parameter: str) -> Placement:
        """The tensor fills the whole parameter."""
        return Placement(parameter, 0, self.get_parameter(parameter).shape[0])
