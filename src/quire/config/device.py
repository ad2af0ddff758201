"""Where the model runs, and how its steps are launched."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The device, its threads, its graphs and its profiler."""

    device: str = option(
        "auto",
        choices=DEVICES,
        basic=True,
        help="Where the model runs; auto takes the GPU where torch can use one. CUDA_VISIBLE_DEVICES says which.",
    )
    threads: int | None = option(
        None,
        help="CPU threads for the model; default is what affinity and cgroup allow this process.",
    )
    enforce_eager: bool = option(
        False,
        help="Launch the kernels of every step one by one, without CUDA graphs. On a CPU it is always so.",
    )
    cudagraph_capture_sizes: tuple[int, ...] | None = option(
        None,
        help="Numbers of sequences for which a decode step has a CUDA graph; default is a list up to max_num_seqs.",
    )
    torch_profiler_dir: str | None = option(
        None,
        help="Folder for traces of torch.profiler. Makes LLM.start_profile and stop_profile possible, and the server's "
        "POST /start_profile and /stop_profile.",
    )

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}", param="device")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}", param="threads")
        if self.torch_profiler_dir == "":
            raise ConfigError("torch_profiler_dir must not be empty", param="torch_profiler_dir")
        if self.cudagraph_capture_sizes is not None:
            self._check_capture_sizes(tuple(self.cudagraph_capture_sizes))

    def _check_capture_sizes(self, sizes: tuple[int, ...]) -> None:
        """Keeps the sizes in rising order, each once, whatever kind of sequence they were given in."""
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ConfigError(
                f"cudagraph_capture_sizes must be integers of at least 1, got {list(sizes)}",
                hint="leave it out for the default list, or give --enforce-eager for no graphs",
                param="cudagraph_capture_sizes",
            )
        if self.enforce_eager:
            raise ConfigError(
                "cudagraph_capture_sizes asks for CUDA graphs and enforce_eager for none",
                hint="leave one of them out",
                param="cudagraph_capture_sizes",
            )
        object.__setattr__(self, "cudagraph_capture_sizes", tuple(sorted(set(sizes))))
