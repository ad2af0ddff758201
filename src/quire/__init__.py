"""quire: an LLM inference and serving engine.

`LLM(...).generate(prompts)` runs a model in this process; `quire serve` answers OpenAI's API. Importing this
package loads nothing heavy: each public name is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.entrypoints.llm import LLM
    from quire.types.outputs import CompletionOutput, Logprob, RequestOutput
    from quire.types.sampling import RequestOutputKind, SamplingParams
    from quire.types.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "quire.entrypoints.llm",
    "CompletionOutput": "quire.types.outputs",
    "Logprob": "quire.types.outputs",
    "RequestOutput": "quire.types.outputs",
    "RequestOutputKind": "quire.types.sampling",
    "SamplingParams": "quire.types.sampling",
    "StructuredOutputsParams": "quire.types.structured_outputs",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
