"""The HTTP server."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the HTTP server listens and whom it answers."""

    host: str = option("127.0.0.1", basic=True, help="Address to bind.")
    port: int = option(8000, basic=True, help="Port to bind; 0 picks a free one.")
    uds: str | None = option(None, help="Unix socket to bind instead of host and port.")
    api_key: tuple[str, ...] = option((), basic=True, help="Accepted bearer key; repeatable. Also QUIRE_API_KEY.")
    served_model_name: tuple[str, ...] = option(
        (), basic=True, help="Names under which the model is served; the first is shown in answers."
    )
    root_path: str = option("", help="Path prefix added by a proxy in front.")
    log_level: str = option("info", choices=("debug", "info", "warning", "error"), help="What the log shows.")
    log_stats_interval: float = option(10.0, help="Seconds between the log lines with throughput, queue and KV use.")
    disable_log_stats: bool = option(False, help="No such lines.")
    shutdown_timeout: float = option(30.0, help="Seconds that running requests get to finish after SIGTERM.")
    max_body_bytes: int = option(32 * 1024 * 1024, human_integer=True, help="Largest request body.")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}", param="port")
        if any(not key for key in self.api_key):
            raise ConfigError("api_key must not be empty", param="api_key")
