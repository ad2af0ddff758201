"""Wires the rooms together; the only file that knows all of them.

Run as a module it is the engine process: `python -m quire.entrypoints.launch SOCKET`.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from quire.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quire.config.engine import EngineConfig
from quire.config.resolve import resolve
from quire.engine import wire
from quire.engine.client import EngineClient, EngineProcess, serve_socket
from quire.engine.collector import rare_collections
from quire.engine.executor import Executor
from quire.engine.grammar import GrammarVocabulary
from quire.engine.grammar_compiler import GrammarCompiler, GrammarIntake
from quire.engine.grammar_masks import MaskMaker
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.server import EngineServer, Profiler
from quire.engine.stop import make_stop_check
from quire.entrypoints.log_format import log_formatter
from quire.errors import ConfigError, EngineProtocolError, QuireError
from quire.frontend.async_engine import AsyncEngine
from quire.frontend.grammar_guard import GrammarGuard
from quire.frontend.input_processor import InputProcessor, create_input_processor
from quire.frontend.structured_outputs import grammar_vocabulary
from quire.frontend.tokenizer import Tokenizer, load_tokenizer
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.worker.start_report import StartReport, process_age_seconds

logger = logging.getLogger("quire.start")


class Ledger(Protocol):
    """Who got how much of a device's memory."""

    def as_dict(self) -> dict[str, int]:
        """Bytes by purpose."""


@runtime_checkable
class ProfilingExecutor(Executor, Profiler, Protocol):
    """An executor that can record what it does; see `quire.worker.profiler`."""


class DeviceExecutor(ProfilingExecutor, Protocol):
    """An executor that has loaded a model onto its device; what the engine around it must know."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""

    @property
    def dtype(self) -> str:
        """Number format of weights and activations."""

    @property
    def memory(self) -> Ledger:
        """Who got how much memory."""

    @property
    def start_seconds(self) -> dict[str, float]:
        """What its constructor spent its time on, by phase."""


@dataclass(slots=True)
class BuiltEngine:
    """An engine in this process.

    Attributes:
        grammars: Compiles the grammars of its requests; None where they may have none.
    """

    loop: EngineLoop
    executor: Executor
    info: EngineInfo
    grammars: GrammarCompiler | None = None

    def profiler(self) -> ProfilingExecutor:
        """The executor, as one that can record.

        Raises:
            ConfigError: It cannot.
        """
        if not isinstance(self.executor, ProfilingExecutor):
            raise ConfigError(f"{type(self.executor).__name__} records no traces")
        return self.executor


def start_offline(config: EngineConfig) -> tuple[BuiltEngine, InputProcessor]:
    """Finds and loads a model, all in this process; logs what that took.

    Raises:
        QuireError: The model cannot be found or loaded, or does not fit.
    """
    report = StartReport()
    checkpoint = open_checkpoint(config.model)
    report.end_phase("open_checkpoint")
    with ThreadPoolExecutor(1, thread_name_prefix="quire-tokenizer") as pool:
        reading = pool.submit(load_tokenizer, checkpoint.tokenizer)
        engine = build_engine(config, checkpoint, serving=False, report=report)
    try:
        inputs = create_input_processor(config.model, checkpoint, reading.result(), engine.info)
    except BaseException:
        engine.executor.shutdown()
        raise
    report.end_phase("tokenizer")
    logger.info("%s", report.table())
    return engine, inputs


def build_engine(
    config: EngineConfig, checkpoint: Checkpoint, *, serving: bool, report: StartReport | None = None
) -> BuiltEngine:
    """Loads the model and builds the loop around it, in this process.

    Args:
        config: As the user gave it.
        checkpoint: What it names.
        serving: Whether requests come one by one over HTTP.
        report: Takes the phases of the start; they go on from its last.

    Raises:
        QuireError: The model cannot be loaded or does not fit.
    """
    report = report or StartReport()
    _import_torch()
    report.end_phase("import_torch")
    grammars = GrammarCompiler(lambda: load_vocabulary(checkpoint))
    if serving:
        # For a second no other thread runs: better now than when requests do.
        grammars.prepare()
    context_length = checkpoint.architecture.context_length
    device = _choose_device(config)
    resolved = resolve(config, context_length=context_length, device=device, serving=serving)
    report.end_phase("find_device")
    executor = _build_executor(resolved, checkpoint)
    report.include(executor.start_seconds, rest="build_executor")
    masks = MaskMaker(checkpoint.architecture.vocab_size)
    scheduler = _build_scheduler(resolved, executor.num_blocks, masks)
    intake, is_cpu = GrammarIntake(grammars), resolved.device.device == "cpu"
    loop = EngineLoop(scheduler, executor, time.monotonic, intake=intake, overlaps_prompts=not is_cpu)
    # What has been built lives as long as the process: the collector need not look at it again.
    gc.freeze()
    report.end_phase("build_scheduler")
    return BuiltEngine(loop, executor, _describe(resolved, checkpoint, executor, report), grammars)


def load_vocabulary(checkpoint: Checkpoint) -> GrammarVocabulary:
    """What grammars must know of a model's tokens.

    Raises:
        QuireError: Its tokenizer cannot be read.
    """
    return grammar_vocabulary(
        load_tokenizer(checkpoint.tokenizer), checkpoint.architecture.vocab_size, checkpoint.architecture.eos_token_ids
    )


def _import_torch() -> None:
    """The slowest import, at a place of its own so that it can be timed, and done while others work."""
    from quire.worker.threads import prepare_torch

    prepare_torch()
    # It makes hundreds of thousands of objects, all of which stay: looks for cycles would walk through them.
    with rare_collections():
        import torch  # noqa: F401
    gc.freeze()


def _choose_device(config: EngineConfig) -> str:
    from quire.worker.device import choose_device

    return choose_device(config.device.device)


def _build_executor(config: EngineConfig, checkpoint: Checkpoint) -> DeviceExecutor:
    if config.device.device == "cuda":
        from quire.worker.cuda_executor import CudaExecutor

        return CudaExecutor(config, checkpoint)
    from quire.worker.cpu_executor import CpuExecutor

    return CpuExecutor(config, checkpoint)


def _build_scheduler(config: EngineConfig, num_blocks: int, masks: MaskMaker) -> Scheduler:
    limits, max_model_len = config.scheduler, config.model.max_model_len
    assert max_model_len is not None
    assert limits.max_num_seqs is not None and limits.max_num_batched_tokens is not None
    cache = KVCacheManager(
        num_blocks=num_blocks,
        block_size=config.cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
    )
    return Scheduler(
        cache=cache,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_prompt_tokens=limits.max_num_prompt_tokens,
        max_model_len=max_model_len,
        policy=limits.scheduling_policy,
        check_stop=make_stop_check(max_model_len),
        make_masks=masks.promise,
    )


def _describe(
    config: EngineConfig, checkpoint: Checkpoint, executor: DeviceExecutor, report: StartReport
) -> EngineInfo:
    limits, max_model_len = config.scheduler, config.model.max_model_len
    assert max_model_len is not None
    assert limits.max_num_seqs is not None and limits.max_num_batched_tokens is not None
    return EngineInfo(
        max_model_len=max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        scheduling_policy=limits.scheduling_policy,
        num_blocks=executor.num_blocks,
        block_size=config.cache.block_size,
        vocab_size=checkpoint.architecture.vocab_size,
        dtype=executor.dtype,
        device=config.device.device,
        memory=executor.memory.as_dict(),
        start_seconds=report.seconds,
        enable_prefix_caching=config.cache.enable_prefix_caching,
    )


async def start_async_engine(
    config: EngineConfig, *, log_level: str = "info", log_format: str = "text", report: StartReport | None = None
) -> AsyncEngine:
    """Starts an engine process and the front end for it.

    The process imports torch while this one finds the model and reads its tokenizer.

    Args:
        config: As the user gave it.
        log_level: Of the engine process.
        log_format: Of its lines, "text" or "json".
        report: Takes the phases of the start; they are those of the engine process, which takes longest.

    Raises:
        QuireError: The model cannot be found or loaded, or does not fit.
    """
    report = report or StartReport()
    report.end_phase("command")
    process = await EngineProcess.spawn([sys.executable, "-m", "quire.entrypoints.launch"])
    try:
        checkpoint = await asyncio.to_thread(open_checkpoint, config.model)
    except BaseException:
        await process.close()
        raise
    located = replace(config, model=replace(config.model, model=str(checkpoint.path), revision=None))
    tokenizer, client = await asyncio.gather(
        asyncio.to_thread(load_tokenizer, checkpoint.tokenizer), process.start(located, log_level, log_format)
    )
    report.include(client.info.start_seconds, rest="front_end")
    return _front_end(config, checkpoint, tokenizer, client)


async def start_async_engine_in_process(config: EngineConfig) -> AsyncEngine:
    """The same engine on a thread of this process, for debugging.

    Raises:
        QuireError: The model cannot be found or loaded, or does not fit.
    """
    checkpoint = await asyncio.to_thread(open_checkpoint, config.model)
    built = await asyncio.to_thread(build_engine, config, checkpoint, serving=True)
    tokenizer = await asyncio.to_thread(load_tokenizer, checkpoint.tokenizer)
    ours, theirs = socket.socketpair()
    threading.Thread(target=_serve, args=(built, theirs), name="quire-engine", daemon=True).start()
    client = EngineClient(*await asyncio.open_unix_connection(sock=ours))
    await client.start()
    return _front_end(config, checkpoint, tokenizer, client)


def _front_end(config: EngineConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, client: EngineClient) -> AsyncEngine:
    processor = create_input_processor(config.model, checkpoint, tokenizer, client.info)
    guard = GrammarGuard(lambda: grammar_vocabulary(tokenizer, processor.vocab_size, processor.eos_token_ids))
    engine = AsyncEngine(
        client,
        processor,
        max_num_queued_reqs=config.scheduler.max_num_queued_reqs,
        max_num_queued_tokens=config.scheduler.max_num_queued_tokens,
        guard=guard,
    )
    engine.start()
    # What has been built lives as long as the process; a collection that walks through it would delay every stream.
    gc.collect()
    gc.freeze()
    return engine


def _serve(built: BuiltEngine, connection: socket.socket) -> None:
    """Serves the front end at the other end of `connection` until it goes away, then ends the engine."""
    with connection:
        try:
            EngineServer(built.loop, connection, built.info, built.profiler()).run()
        finally:
            built.executor.shutdown()


def main() -> None:
    """The engine process: connects to the front end, loads what it says, and serves it until it goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = serve_socket(sys.argv[1])
    report = StartReport(age_seconds=process_age_seconds())
    report.end_phase("start_process")
    _import_torch()
    report.end_phase("import_torch")
    body = wire.read_frame(connection)
    if body is None:
        return
    message = wire.decode_to_engine(body)
    if not isinstance(message, wire.Start):
        raise EngineProtocolError(f"the first message is {type(message).__name__}, not Start")
    report.end_phase("wait_for_front_end")
    handler = logging.StreamHandler()
    handler.setFormatter(log_formatter(message.log_format, "%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=message.log_level.upper(), handlers=[handler])
    try:
        checkpoint = open_checkpoint(message.config.model)
        report.end_phase("open_checkpoint")
        built = build_engine(message.config, checkpoint, serving=True, report=report)
    except QuireError as error:
        failure = wire.StartFailed(kind=type(error).__name__, message=error.message, hint=error.hint, param=error.param)
        connection.sendall(wire.encode(failure))
        return
    _serve(built, connection)


if __name__ == "__main__":
    main()
