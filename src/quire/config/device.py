"""Where the model runs."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The device and its threads."""

    device: str = option("auto", choices=DEVICES, help="Where the model runs.")
    threads: int | None = option(
        None,
        help="CPU threads for the model; default is what affinity and cgroup allow this process.",
    )

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}", param="device")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}", param="threads")
