"""From an architecture's name to its class."""

import torch

from quire.checkpoint.architecture import ModelArchitecture
from quire.errors import UnsupportedModelError
from quire.models.decoder import DecoderModel
from quire.models.llama import LlamaForCausalLM
from quire.models.mistral import MistralForCausalLM
from quire.models.qwen2 import Qwen2ForCausalLM
from quire.models.qwen3 import Qwen3ForCausalLM

MODELS: dict[str, type[DecoderModel]] = {
    model.__name__: model for model in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
}


def create_model(
    architecture: ModelArchitecture, *, dtype: torch.dtype, device: str = "meta", max_model_len: int | None = None
) -> DecoderModel:
    """A model with uninitialised parameters.

    Args:
        architecture: What to build.
        dtype: Of weights and activations.
        device: "meta" takes no memory.
        max_model_len: Tokens of the longest sequence that will come. Only dynamic rope depends on it; by default it is
            stretched to the longest context of the model.

    Raises:
        UnsupportedModelError: No class of that name.
    """
    model = MODELS.get(architecture.name)
    if model is None:
        raise UnsupportedModelError(
            f"architecture {architecture.name} is not supported", hint=f"supported: {', '.join(MODELS)}"
        )
    return model(architecture, dtype=dtype, device=device, max_model_len=max_model_len)
