"""All settings of one engine."""

from dataclasses import dataclass, field, fields
from typing import Any

from quire.config.cache import CacheConfig
from quire.config.compatibility import UNBUILT, refuse_unbuilt
from quire.config.device import DeviceConfig
from quire.config.model import ModelConfig
from quire.config.option import options_of
from quire.config.scheduler import SchedulerConfig
from quire.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: a model on a device, its KV cache and its scheduler."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)

    @classmethod
    def from_options(cls, **values: Any) -> "EngineConfig":
        """Sorts flat options (`model=..., block_size=...`) into their owners.

        Raises:
            ConfigError: An option that no owner knows or that is not built, or a value that its owner refuses.
        """
        refuse_unbuilt(values, as_flags=False)
        owners = {f.name: f.default_factory for f in fields(cls)}
        sorted_values: dict[str, dict[str, Any]] = {name: {} for name in owners}
        for key, value in values.items():
            if key in UNBUILT:
                continue
            owner = next((name for name, make in owners.items() if key in options_of(make)), None)  # type: ignore[arg-type]
            if owner is None:
                raise ConfigError(f"unknown option {key!r}", hint="`quire serve --help=all` lists them", param=key)
            sorted_values[owner][key] = value
        return cls(**{name: make(**sorted_values[name]) for name, make in owners.items()})  # type: ignore[operator]
