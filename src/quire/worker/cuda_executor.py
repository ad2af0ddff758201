"""The compute half on a GPU: loads the model, sizes the KV cache, launches plans on one stream."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from quire.checkpoint.architecture import ModelArchitecture
from quire.checkpoint.checkpoint import Checkpoint
from quire.config.engine import EngineConfig
from quire.errors import EngineDeadError, StepFailedError
from quire.kernels.sample import TokenMask
from quire.kernels.silu_mul import silu_mul
from quire.models.decoder import DecoderModel
from quire.models.loading.load import load_weights
from quire.models.registry import create_model
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, StepPlan, StepResult
from quire.types.sampling import SamplingParams
from quire.worker import cuda_memory, memory
from quire.worker.cuda_memory import CudaMemoryLedger
from quire.worker.cuda_runner import CudaModelRunner, LaunchedStep
from quire.worker.decode_graphs import default_buckets
from quire.worker.device_sampling import DeviceSampling
from quire.worker.dtype import check_quantization, dtype_name, resolve_dtype, resolve_kv_cache_dtype
from quire.worker.kv_storage import block_num_bytes
from quire.worker.profiler import Profiler
from quire.worker.start_report import StartReport

logger = logging.getLogger("quire.worker")

_COMPILED_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of tokens whose matrix products are run once: each may be another kernel."""

_COMPILE_THREADS = 16
"""That compile at a time, at most. Compilers leave the interpreter alone most of the time."""

_WARM_UP_TOKENS = (100, 300, 512, 600, 1024, 2048)
"""Lengths of prompts that are run once, so that cuBLAS has chosen its kernels."""

_MAX_CAPTURED_ROWS = 256
"""Batches up to this have their graphs before the first request, at about 20 ms each; larger ones when first needed."""

_ATTENTION_ROWS = (1, 32, 128, 256)
"""Batches whose attention is run once: each may be another kernel."""

_SAMPLERS = (
    SamplingParams(temperature=1.0, top_k=2),
    SamplingParams(repetition_penalty=1.1),
    SamplingParams(logit_bias={0: 1.0}, allowed_token_ids=[0, 1, 2], min_tokens=1),
    SamplingParams(bad_words=["any"]),
    SamplingParams(logprobs=1),
)
"""Together, all that can be asked of the sampler."""

_DEVICE_IS_LOST = ("illegal memory access", "unspecified launch failure", "device-side assert", "uncorrectable")


class CudaExecutor:
    """Launches plans in the order of their submission. Implements the engine's `Executor`.

    `submit` returns once a step is launched, `wait` once the device has ended it; both are called from one thread.

    Args:
        config: With `max_model_len`, `max_num_seqs` and `max_num_batched_tokens` filled in.
        checkpoint: The opened model.

    Attributes:
        architecture: The model's.
        memory: Who got how much of the card.

    Raises:
        InsufficientMemoryError: Weights or KV cache do not fit.
        CheckpointError: The weights cannot be loaded.
    """

    memory: CudaMemoryLedger

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self.architecture: ModelArchitecture = checkpoint.architecture
        self._report = StartReport()
        self._profiler = Profiler(config.device.torch_profiler_dir)
        self._config = config
        self._launched: deque[LaunchedStep | StepFailedError] = deque()
        self._device = torch.device("cuda", torch.cuda.current_device())
        # A graph cannot be captured on the default stream; everything runs on this one, in order.
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with self._on_stream():
            self._start(checkpoint)

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return self.memory.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.memory.block_size

    @property
    def max_model_len(self) -> int:
        """Prompt and answer together, in tokens."""
        assert self._config.model.max_model_len is not None
        return self._config.model.max_model_len

    @property
    def vocab_size(self) -> int:
        """Tokens that the model tells apart."""
        return self.architecture.vocab_size

    @property
    def dtype(self) -> str:
        """Number format of weights and activations ("bfloat16")."""
        return dtype_name(self._dtype)

    @property
    def start_seconds(self) -> dict[str, float]:
        """What the start spent its time on, by phase."""
        return self._report.seconds

    @property
    def kv_caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values per layer, each [num_blocks, block_size, num_kv_heads, head_dim]."""
        return self._runner.kv_caches

    def submit(self, plan: StepPlan) -> None:
        """Launches a plan and returns without waiting for it."""
        try:
            with self._on_stream():
                self._launched.append(self._runner.launch(plan))
        except Exception as error:
            logger.exception("step %d with %d sequences failed", plan.step, len(plan.slots))
            _raise_if_lost(error)
            self._launched.append(_step_failure(plan, error))

    def wait(self) -> StepResult:
        """Waits for the oldest plan that was submitted and not waited for.

        Raises:
            StepFailedError: The step could not be run; later plans can.
            EngineDeadError: The device is lost.
        """
        assert self._launched, "no plan was submitted"
        launched = self._launched.popleft()
        if isinstance(launched, StepFailedError):
            raise launched
        try:
            return self._runner.finish(launched)
        except Exception as error:
            logger.exception("step %d with %d sequences failed", launched.plan.step, len(launched.plan.slots))
            _raise_if_lost(error)
            raise _step_failure(launched.plan, error) from error

    def start_profile(self) -> None:
        """Begins to record a trace. See `Profiler.start`."""
        self._profiler.start()

    def stop_profile(self) -> str:
        """Ends it, behind the plans that were submitted, and returns the trace's path. See `Profiler.stop`."""
        return self._profiler.stop()

    def shutdown(self) -> None:
        """Waits for the step that runs and gives the memory back. Plans behind that are dropped."""
        self._launched.clear()
        self._stream.synchronize()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream), torch.inference_mode():
            yield

    def _start(self, checkpoint: Checkpoint) -> None:
        cache, scheduler = self._config.cache, self._config.scheduler
        assert scheduler.max_num_seqs is not None and scheduler.max_num_batched_tokens is not None
        start = cuda_memory.read_device(self._device)
        self._report.end_phase("cuda_context")
        check_quantization(self._config.model.quantization, checkpoint, device="cuda")
        self._dtype = resolve_dtype(self._config.model.dtype, checkpoint, device="cuda")
        self._kv_dtype = resolve_kv_cache_dtype(cache.kv_cache_dtype, self._dtype, device="cuda")
        self.memory = cuda_memory.open_ledger(
            start,
            cache,
            weight_bytes=memory.count_parameters(self.architecture, copies_tied_head=False) * self._dtype.itemsize,
            block_bytes=block_num_bytes(**self._kv_geometry()),
            block_size=cache.block_size,
        )
        cuda_memory.check_card_is_free(self.memory, cache)
        memory.check_weights_fit(self.memory)
        self._limit_memory()
        with ThreadPoolExecutor(1, "quire-compiler") as thread:
            compiler = thread.submit(self._start_compiler)
            model = self._load_model(checkpoint)
            compiler.result()
        buckets = self._graph_buckets(scheduler.max_num_seqs)
        self._runner = CudaModelRunner(
            model,
            self._allocate_kv_caches(num_blocks=1),
            num_heads=self.architecture.num_attention_heads,
            max_num_seqs=scheduler.max_num_seqs,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            graph_buckets=buckets,
            on_stream=self._on_stream,
        )
        self._compile(model)
        self._size_kv_cache(start, buckets)
        self._warm_up(buckets)
        logger.info("%s on %s", self.dtype, torch.cuda.get_device_name(self._device))
        logger.info("%s", self.memory.table())

    def _start_compiler(self) -> None:
        """Launches a small kernel. For the first one of a process Triton reads all of itself, some 400 MB, to name its
        cache; threads that came at once would each do that.
        """
        with self._on_stream():
            silu_mul(torch.zeros((1, 2), dtype=self._dtype, device=self._device))

    def _load_model(self, checkpoint: Checkpoint) -> DecoderModel:
        config = self._config.model
        with torch.inference_mode(mode=False):
            model = create_model(checkpoint.architecture, dtype=self._dtype, max_model_len=self.max_model_len)
        self._report.end_phase("build_model")
        # Weights are ordinary tensors: threads of their own fill them in.
        with torch.inference_mode(mode=False):
            load_weights(model, checkpoint, progress=config.use_tqdm_on_load, seed=config.seed, device=self._device)
        torch.cuda.synchronize(self._device)
        self._report.end_phase("load_weights")
        return model

    def _compile(self, model: DecoderModel) -> None:
        """Runs every kernel once, on padding, several at a time: compiling them is most of a first start."""
        max_num_seqs = self._config.scheduler.max_num_seqs
        assert max_num_seqs is not None
        batches = (1, min(_MAX_CAPTURED_ROWS, max_num_seqs))
        # What takes longest begins first.
        works: list[Callable[[], object]] = [partial(self._runner.run_padded_prompts, 300, 1, draws=False)]
        works += [partial(self._runner.run_padded_attention, min(rows, max_num_seqs)) for rows in _ATTENTION_ROWS]
        works += [partial(self._draw_once, sampling, masks=index == 0) for index, sampling in enumerate(_SAMPLERS)]
        for num_tokens in _COMPILED_ROWS:
            works += model.products(num_tokens)

        def run(work: Callable[[], object]) -> None:
            with self._on_stream():
                work()

        num_threads = min(_COMPILE_THREADS, os.cpu_count() or 1)
        # Waiting for the device gives a new thread the context that cuBLAS wants to find.
        with ThreadPoolExecutor(
            num_threads, "quire-compile", initializer=torch.cuda.synchronize, initargs=(self._device,)
        ) as threads:
            for done in [threads.submit(run, work) for work in works]:
                done.result()
        for num_rows in batches:
            self._runner.run_padded_decode(num_rows)
        torch.cuda.synchronize(self._device)
        self._report.end_phase("compile_kernels")

    def _draw_once(self, params: SamplingParams, *, masks: bool) -> None:
        """One draw, with scratch of its own; `masks`: under a mask, too."""
        everything = np.full((1, -(-self.vocab_size // 32)), 0xFFFF_FFFF, np.uint32)
        sampling = DeviceSampling(max_num_seqs=1, vocab_size=self.vocab_size, device=self._device)
        sampling.enter(_warm_up_sequence([0, 1], sampling=params))
        sampling.flush()
        slots = torch.zeros(1, dtype=torch.int32, device=self._device)
        sampling.draw_eager(
            torch.zeros(1, self.vocab_size, device=self._device),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
            slots,
            slots.clone(),
            slots.clone(),
            torch.zeros(2, dtype=torch.int32, device=self._device),
            TokenMask(np.zeros(1, np.int64), everything) if masks else None,
        )

    def _size_kv_cache(self, start: cuda_memory.DeviceReading, buckets: tuple[int, ...]) -> None:
        """Runs the largest step, then gives the KV cache what is left."""
        cache, scheduler = self._config.cache, self._config.scheduler
        num_tokens, num_rows = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
        assert num_tokens is not None and num_rows is not None
        loaded = cuda_memory.read_device(self._device)
        profiled = cuda_memory.measure_step(
            lambda: self._runner.run_padded_prompts(num_tokens, num_rows), self._device, num_tokens=num_tokens
        )
        self._report.end_phase("profile_memory")
        graph_bytes = cuda_memory.estimate_graph_bytes(
            self.architecture,
            # With and without the draw.
            num_graphs=2 * len(buckets),
            num_rows=max(buckets, default=0),
            dtype_bytes=self._dtype.itemsize,
        )
        self.memory = cuda_memory.settle_ledger(
            self.memory,
            start=start,
            loaded=loaded,
            profiled=profiled,
            graph_bytes=graph_bytes,
            sampler_bytes=self._runner.sampling.max_bytes(),
        )
        self._limit_memory()
        num_blocks = memory.choose_num_blocks(
            self.memory, cache, max_num_seqs=num_rows, max_model_len=self.max_model_len
        )
        self.memory = replace(self.memory, num_blocks=num_blocks)
        self._runner.kv_caches = self._allocate_kv_caches(num_blocks=num_blocks)
        self._report.end_phase("kv_cache")

    def _limit_memory(self) -> None:
        fraction = cuda_memory.torch_memory_fraction(self.memory, self._config.cache)
        torch.cuda.set_per_process_memory_fraction(fraction, self._device)

    def _allocate_kv_caches(self, *, num_blocks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values per layer. One allocation: the gaps between smaller ones would add up."""
        geometry = self._kv_geometry()
        shape = (num_blocks, geometry["block_size"], geometry["num_kv_heads"], geometry["head_dim"])
        caches = torch.zeros((geometry["num_layers"], 2, *shape), dtype=self._kv_dtype, device=self._device)
        return [(keys, values) for keys, values in caches]

    def _kv_geometry(self) -> dict[str, Any]:
        return {
            "num_layers": self.architecture.num_hidden_layers,
            "block_size": self._config.cache.block_size,
            "num_kv_heads": self.architecture.num_key_value_heads,
            "head_dim": self.architecture.head_dim,
            "dtype": self._kv_dtype,
        }

    def _graph_buckets(self, max_num_seqs: int) -> tuple[int, ...]:
        device = self._config.device
        if device.enforce_eager:
            return ()
        if device.cudagraph_capture_sizes is None:
            return default_buckets(max_num_seqs)
        return device.cudagraph_capture_sizes

    def _warm_up(self, buckets: tuple[int, ...]) -> None:
        """So that the first requests do not pay for loading and capturing."""
        scheduler = self._config.scheduler
        assert scheduler.max_num_batched_tokens is not None
        for num_tokens in _WARM_UP_TOKENS:
            self._runner.run_padded_prompts(min(num_tokens, scheduler.max_num_batched_tokens), 1)
        for num_rows in buckets:
            if num_rows <= _MAX_CAPTURED_ROWS:
                self._runner.capture(num_rows)
        self._report.end_phase("capture_graphs")
        self._run_sequence_once()
        torch.cuda.synchronize(self._device)
        self._report.end_phase("warm_up")

    def _run_sequence_once(self) -> None:
        """One short sequence from prompt to second token, as a request would run it."""
        new = _warm_up_sequence([0] * min(8, self.max_model_len - 1), sampling=SamplingParams(temperature=1.0))
        place: dict[str, Any] = {"slots": [new.slot], "sequence_ids": [new.sequence_id], "samples": [True]}
        prompt = StepPlan(step=0, new_sequences=[new], num_tokens=[len(new.token_ids)], **place)
        for plan in (prompt, StepPlan(step=0, num_tokens=[1], **place)):
            self.submit(plan)
            self.wait()
        self._runner.state.vacate(new.slot)


def _warm_up_sequence(token_ids: list[int], *, sampling: SamplingParams) -> NewSequence:
    return NewSequence(
        sequence_id=SequenceId(0),
        slot=SlotIndex(0),
        token_ids=token_ids,
        num_prompt_tokens=1,
        num_computed_tokens=0,
        block_ids=[BlockId(0)],
        sampling=sampling,
        seed=0,
        sample_index=0,
        stop_token_ids=frozenset({0}),
        bad_words_token_ids=((0, 1), (1,)) if sampling.bad_words else (),
    )


def _step_failure(plan: StepPlan, error: Exception) -> StepFailedError:
    failure = StepFailedError(
        f"step {plan.step} with {len(plan.slots)} sequences failed: {type(error).__name__}: {error}"
    )
    failure.__cause__ = error
    return failure


def _raise_if_lost(error: Exception) -> None:
    """After such an error the context is of no use; every further call fails."""
    if any(reason in str(error) for reason in _DEVICE_IS_LOST):
        raise EngineDeadError(f"the GPU is lost: {error}") from error
