"""The HTTP server."""

import json
from dataclasses import dataclass
from typing import Any

from quire.config.option import option
from quire.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the HTTP server listens and whom it answers."""

    host: str = option("127.0.0.1", basic=True, help="Address to bind.")
    port: int = option(8000, basic=True, help="Port to bind; 0 picks a free one.")
    uds: str | None = option(None, help="Unix socket to bind instead of host and port.")
    api_key: tuple[str, ...] = option(
        (), basic=True, help="Accepted bearer key; repeatable. Also QUIRE_API_KEY, with commas between several."
    )
    api_keys: str | None = option(
        None, help="File of hashed keys with their limits, in YAML or JSON; read again when it changes."
    )
    allow_anonymous: bool = option(False, help="Listen beyond this machine without any key.")
    served_model_name: tuple[str, ...] = option(
        (), basic=True, help="Names under which the model is served; the first is shown in answers."
    )
    enable_auto_tool_choice: bool = option(
        False,
        help="Let the model decide by itself whether to call a tool. Needs to know how it writes calls: "
        "from its chat template or --tool-call-parser.",
    )
    tool_call_parser: str | None = option(
        None,
        help="Format in which the model writes tool calls, where its chat template does not show it; none for no "
        "parsing. docs/server.md lists the formats.",
    )
    reasoning_parser: str | None = option(
        None,
        help="Format in which the model writes its reasoning, where its chat template does not show it; none leaves "
        "reasoning in the text.",
    )
    exclude_tools_when_tool_choice_none: bool = option(
        False, help="Do not show the tools to the model in requests with tool_choice none."
    )
    trust_request_chat_template: bool = option(False, help="Let requests bring a chat template of their own.")
    default_chat_template_kwargs: str | None = option(
        None,
        help='Variables for the chat template, as a JSON object such as {"enable_thinking": false}; those of a request '
        "go first.",
    )
    stream_interval: int = option(1, help="Tokens per event of a stream; requests may raise it.")
    disable_fastapi_docs: bool = option(False, help="No /docs and no /openapi.json.")
    root_path: str = option("", help="Path prefix added by a proxy in front.")
    log_level: str = option("info", choices=("debug", "info", "warning", "error"), help="What the log shows.")
    log_format: str = option("text", choices=("text", "json"), help="Text, or one JSON object per line of the log.")
    enable_log_requests: bool = option(
        False, help="A line in the log per request: who, what, how many tokens, how long, how it ended."
    )
    log_prompts: bool = option(False, help="Show prompts in these lines. They may be private.")
    max_log_len: int = option(1000, help="Characters shown of a prompt.")
    otlp_traces_endpoint: str | None = option(
        None,
        help="URL of an OpenTelemetry collector that takes traces by HTTP, such as http://localhost:4318/v1/traces.",
    )
    enable_vllm_metric_names: bool = option(
        False, help="Show metrics under vLLM's names (vllm:...) as well, for dashboards that were made for it."
    )
    log_stats_interval: float = option(10.0, help="Seconds between the log lines with throughput, queue and KV use.")
    disable_log_stats: bool = option(False, help="No such lines.")
    shutdown_timeout: float = option(30.0, help="Seconds that running requests get to finish after SIGTERM.")
    max_body_bytes: int = option(32 * 1024 * 1024, human_integer=True, help="Largest request body.")
    max_stored_responses: int = option(
        1000, help="Responses of /v1/responses kept in memory for previous_response_id; 0 keeps none."
    )
    stored_responses_bytes: int = option(
        64 * 1024 * 1024, human_integer=True, help="What they may take together; the oldest go first."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}", param="port")
        if self.stream_interval < 1:
            interval = self.stream_interval
            raise ConfigError(f"stream_interval must be at least 1, got {interval}", param="stream_interval")
        if any(not key for key in self.api_key):
            raise ConfigError("api_key must not be empty", param="api_key")
        if not isinstance(self.default_template_variables, dict):
            raise self._bad_template_variables()

    @property
    def needs_key(self) -> bool:
        """Whether clients must send a key."""
        return bool(self.api_key) or self.api_keys is not None

    @property
    def default_template_variables(self) -> dict[str, Any]:
        """Variables for the chat template of every request.

        Raises:
            ConfigError: They are not JSON.
        """
        try:
            variables: dict[str, Any] = json.loads(self.default_chat_template_kwargs or "{}")
        except (ValueError, RecursionError):
            raise self._bad_template_variables() from None
        return variables

    def _bad_template_variables(self) -> ConfigError:
        return ConfigError(
            f"default_chat_template_kwargs must be a JSON object, got {self.default_chat_template_kwargs!r}",
            hint="quote it for the shell: --default-chat-template-kwargs '{\"enable_thinking\": false}'",
            param="default_chat_template_kwargs",
        )
