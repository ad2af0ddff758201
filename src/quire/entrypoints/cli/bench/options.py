"""The options of `quire bench serve`."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError

BACKENDS = ("quire", "vllm", "openai", "openai-chat")
DATASETS = ("random", "prefix_repetition", "sharegpt", "custom")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """Which server is measured, and through which endpoint."""

    backend: str = option(
        "quire", choices=BACKENDS, basic=True, help="openai-chat uses the chat endpoint, the others completions."
    )
    base_url: str | None = option(None, basic=True, help="Address of the server, instead of host and port.")
    host: str = option("127.0.0.1", basic=True, help="Host of the server.")
    port: int = option(8000, basic=True, help="Port of the server.")
    endpoint: str | None = option(None, help="Path of the endpoint; default by backend.")
    model: str | None = option(None, basic=True, help="Name of the model; default is the first one served.")
    served_model_name: str | None = option(None, help="Name to send, where --model names a tokenizer only.")
    tokenizer: str | None = option(
        None, help="Folder, hub id or GGUF file whose tokenizer counts tokens; needed for sharegpt lengths only."
    )
    header: tuple[str, ...] = option((), help="KEY=VALUE sent with every request; repeatable.")
    api_key: str | None = option(None, help="Key to send; default is QUIRE_API_KEY or OPENAI_API_KEY.")
    extra_body: str | None = option(None, help="JSON object merged into every request.")
    ready_check_timeout_sec: float = option(60.0, help="Seconds to wait until the server answers; 0 for no check.")
    request_timeout: float = option(600.0, help="Seconds after which a request counts as failed.")

    def __post_init__(self) -> None:
        if not 0 < self.port <= 65535:
            raise ConfigError(f"port must be between 1 and 65535, got {self.port}", param="port")
        if self.request_timeout <= 0:
            raise ConfigError(f"request_timeout must be above 0, got {self.request_timeout}", param="request_timeout")

    @property
    def is_chat(self) -> bool:
        """Whether the chat endpoint is measured."""
        return self.backend == "openai-chat"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """When requests are sent."""

    num_prompts: int = option(1000, human_integer=True, basic=True, help="Requests to send.")
    request_rate: float = option(
        float("inf"), basic=True, help="Requests sent per second (open loop); inf sends as fast as allowed."
    )
    burstiness: float = option(1.0, help="Shape of the gaps between requests: 1 is Poisson, below 1 burstier.")
    max_concurrency: int | None = option(None, basic=True, help="Requests open at the same time (closed loop).")
    num_warmups: int = option(0, help="Requests sent before the measurement, with prompts of their own.")
    seed: int = option(0, help="Seed of prompts and gaps.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")

    def __post_init__(self) -> None:
        _check_at_least("num_prompts", self.num_prompts, 1)
        _check_at_least("max_concurrency", self.max_concurrency, 1)
        _check_at_least("num_warmups", self.num_warmups, 0)
        for name in ("request_rate", "burstiness"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """Where prompts come from, and how long prompts and answers are, in tokens."""

    dataset_name: str = option("random", choices=DATASETS, basic=True, help="Where prompts come from.")
    dataset_path: str | None = option(None, basic=True, help="File of sharegpt (JSON) or custom (JSONL).")
    input_len: int = option(
        1024, human_integer=True, basic=True, aliases=("--random-input-len",), help="Length of random prompts."
    )
    output_len: int | None = option(
        None,
        human_integer=True,
        basic=True,
        aliases=(
            "--random-output-len",
            "--sharegpt-output-len",
            "--custom-output-len",
            "--prefix-repetition-output-len",
        ),
        help="Length of answers; default 128, for sharegpt that of the recorded answer.",
    )
    random_range_ratio: float = option(0.0, help="Lengths vary evenly by this fraction around the given ones.")
    random_prefix_len: int = option(0, help="Tokens that all random prompts begin with, in addition.")
    prefix_repetition_prefix_len: int = option(256, help="Length of the prefixes of prefix_repetition.")
    prefix_repetition_suffix_len: int = option(256, help="Length of what follows them.")
    prefix_repetition_num_prefixes: int = option(10, help="How many different prefixes there are.")
    vocab_size: int = option(30_000, help="Random token ids are drawn from 1,000 up to this, or the tokenizer's size.")

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "prefix_repetition_prefix_len", "prefix_repetition_suffix_len"):
            _check_at_least(name, getattr(self, name), 1)
        _check_at_least("prefix_repetition_num_prefixes", self.prefix_repetition_num_prefixes, 1)
        _check_at_least("random_prefix_len", self.random_prefix_len, 0)
        _check_at_least("vocab_size", self.vocab_size, 2)
        if not 0.0 <= self.random_range_ratio < 1.0:
            raise ConfigError(
                f"random_range_ratio must be in [0, 1), got {self.random_range_ratio}", param="random_range_ratio"
            )
        if self.dataset_name in ("sharegpt", "custom") and self.dataset_path is None:
            raise ConfigError(f"dataset {self.dataset_name} needs --dataset-path", param="dataset_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSamplingOptions:
    """What the requests ask for."""

    ignore_eos: bool = option(False, basic=True, help="Answers go on to their full length.")
    temperature: float = option(0.0, help="0 takes the most likely token.")
    top_p: float | None = option(None, help="Sent as it is; default is the server's.")
    top_k: int | None = option(None, help="Sent as it is; default is the server's.")
    min_p: float | None = option(None, help="Sent as it is; default is the server's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What is reported, and where to."""

    percentile_metrics: str = option(
        "ttft,tpot,itl,e2el", help="Latencies to report, with commas: ttft, tpot, itl, e2el."
    )
    metric_percentiles: str = option("50,90,99", help="Percentiles to report, with commas.")
    goodput: tuple[str, ...] = option(
        (), basic=True, help="Limits in ms that a good request meets: ttft:200 tpot:50 e2el:5000."
    )
    save_result: bool = option(False, basic=True, help="Write a JSON file with the result.")
    save_detailed: bool = option(False, help="The file also holds every request's lengths, times, text and error.")
    result_dir: str = option(".", help="Folder of that file.")
    result_filename: str | None = option(None, basic=True, help="Its name; default from backend, rate and time.")
    metadata: tuple[str, ...] = option((), help="KEY=VALUE for that file; repeatable.")


def _check_at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{name} must be at least {low}, got {value}", param=name)
