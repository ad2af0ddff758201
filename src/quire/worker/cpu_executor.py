"""The compute half on a CPU: loads the model, sizes the KV cache, runs plans on one thread of its own."""

import logging
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from quire.checkpoint.architecture import ModelArchitecture
from quire.checkpoint.checkpoint import Checkpoint
from quire.config.engine import EngineConfig
from quire.errors import StepFailedError
from quire.kernels.native import NativeCpu, describe_kernels, extension
from quire.kernels.sample import NativeSampler, draw_tokens
from quire.models.decoder import DecoderModel
from quire.models.loading.load import load_packed_weights, load_weights
from quire.models.loading.native_packing import NativePacking
from quire.models.registry import create_model
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, StepPlan, StepResult
from quire.types.sampling import SamplingParams
from quire.worker import memory
from quire.worker.cpu_formats import choose_formats, expected_weight_bytes, is_compiled_for
from quire.worker.dtype import dtype_name
from quire.worker.kv_storage import allocate_caches, block_num_bytes
from quire.worker.memory import MemoryLedger
from quire.worker.model_runner import ModelRunner
from quire.worker.numa import interleave_memory, nodes_of, usable_cpus
from quire.worker.profiler import Profiler
from quire.worker.recorded_model import RecordedModel
from quire.worker.start_report import StartReport
from quire.worker.step_model import TorchStepModel
from quire.worker.threads import default_num_threads

logger = logging.getLogger("quire.worker")


class CpuExecutor:
    """Runs plans in the order of their submission. Implements the engine's `Executor`.

    Everything of torch happens on one thread, which owns the pool of compute threads. `submit` and `wait` are
    called from one other thread.

    Args:
        config: With `max_model_len`, `max_num_seqs` and `max_num_batched_tokens` filled in.
        checkpoint: The opened model.

    Attributes:
        architecture: The model's.
        memory: Who got how much memory.

    Raises:
        InsufficientMemoryError: Weights or KV cache do not fit.
        CheckpointError: The weights cannot be loaded.
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self.architecture: ModelArchitecture = checkpoint.architecture
        self._report = StartReport()
        self._profiler = Profiler(config.device.torch_profiler_dir)
        self._config = config
        self._num_threads = config.device.threads or default_num_threads()
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="quire-worker",
            initializer=torch.set_num_threads,
            initargs=(self._num_threads,),
        )
        self._results: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        try:
            self._thread.submit(self._start, checkpoint).result()
        except BaseException:
            self.shutdown()
            raise

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
        """Number format of most of the weights ("bfloat16", "Q4_1")."""
        return self._formats.name

    @property
    def start_seconds(self) -> dict[str, float]:
        """What the start spent its time on, by phase."""
        return self._report.seconds

    def submit(self, plan: StepPlan) -> None:
        """Hands over a plan and returns without waiting for it."""
        self._results.append((plan, self._thread.submit(self._execute, plan)))

    def wait(self) -> StepResult:
        """Waits for the oldest plan that was submitted and not waited for.

        Raises:
            StepFailedError: The step could not be run; later plans can.
        """
        assert self._results, "no plan was submitted"
        return self._results.popleft()[1].result()

    def start_profile(self) -> None:
        """Begins to record a trace, behind the plans that were submitted. See `Profiler.start`."""
        self._thread.submit(self._profiler.start).result()

    def stop_profile(self) -> str:
        """Ends it, behind the plans that were submitted, and returns the trace's path. See `Profiler.stop`."""
        return self._thread.submit(self._profiler.stop).result()

    def shutdown(self) -> None:
        """Ends the thread after the step that it runs. Plans behind that are dropped."""
        for plan, _ in self._results:
            if plan.masks is not None:
                plan.masks.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> StepResult:
        try:
            return self._runner.execute(plan)
        except CancelledError as error:
            raise StepFailedError(f"step {plan.step} was given up") from error
        except Exception as error:
            logger.exception("step %d with %d sequences failed", plan.step, len(plan.slots))
            raise StepFailedError(
                f"step {plan.step} with {len(plan.slots)} sequences failed: {type(error).__name__}: {error}"
            ) from error

    def _start(self, checkpoint: Checkpoint) -> None:
        config, scheduler = self._config, self._config.scheduler
        assert scheduler.max_num_seqs is not None and scheduler.max_num_batched_tokens is not None
        nodes = nodes_of(usable_cpus())
        if len(nodes) > 1 and interleave_memory(nodes):
            logger.info("memory is spread over the nodes %s", nodes)
        native = NativeCpu.create(self._num_threads) if is_compiled_for(self.architecture) else None
        self._formats = choose_formats(config, checkpoint)
        kv_dtype = self._formats.kv_cache
        self.memory = self._expect_memory(checkpoint, is_compiled=native is not None)
        memory.check_weights_fit(self.memory)
        model = create_model(checkpoint.architecture, dtype=self._formats.activations, max_model_len=self.max_model_len)
        self._report.end_phase("build_model")
        self._load(model, checkpoint, native)
        self._report.end_phase("load_weights")
        self.memory = replace(self.memory, weight_bytes=model.num_weight_bytes())
        num_blocks = memory.choose_num_blocks(
            self.memory, config.cache, max_num_seqs=scheduler.max_num_seqs, max_model_len=self.max_model_len
        )
        self.memory = replace(self.memory, num_blocks=num_blocks)
        kv_caches = allocate_caches(num_blocks=num_blocks, **self._kv_geometry(kv_dtype))
        self._report.end_phase("kv_cache")
        self._runner = ModelRunner(
            TorchStepModel(model, kv_caches.layers) if native is None else RecordedModel(model, native, kv_caches),
            kv_caches.tensors,
            max_num_seqs=scheduler.max_num_seqs,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            draw=draw_tokens if native is None else NativeSampler(native.pool, native.instruction_set).draw_tokens,
        )
        self._warm_up()
        self._report.end_phase("warm_up")
        logger.info("%s on %d threads, KV cache %s", self.dtype, self._num_threads, dtype_name(kv_dtype))
        logger.info(
            "CPU kernels: %s", describe_kernels() if native or not extension() else "torch, for these head sizes"
        )
        logger.info("%s", self.memory.table())

    def _load(self, model: DecoderModel, checkpoint: Checkpoint, native: NativeCpu | None) -> None:
        options = self._config.model
        if native is None:
            load_weights(model, checkpoint, progress=options.use_tqdm_on_load, seed=options.seed)
            return
        packing = NativePacking(native, self._formats.weights)
        load_packed_weights(model, checkpoint, packing, progress=options.use_tqdm_on_load, seed=options.seed)
        sizes = (f"{size / 2**20:.1f} MiB {name}" for name, size in packing.num_bytes.items())
        logger.info("weights: %s", ", ".join(sizes))

    def _expect_memory(self, checkpoint: Checkpoint, *, is_compiled: bool) -> MemoryLedger:
        """The ledger before anything is loaded; weights are counted from the checkpoint or the architecture."""
        if is_compiled:
            num_parameters = memory.count_parameters(self.architecture, copies_tied_head=False)
            weight_bytes = expected_weight_bytes(checkpoint, self._formats, num_parameters)
        else:
            weight_bytes = memory.count_parameters(self.architecture) * self._formats.activations.itemsize
        scheduler, cache = self._config.scheduler, self._config.cache
        assert scheduler.max_num_seqs is not None and scheduler.max_num_batched_tokens is not None
        return MemoryLedger(
            available_bytes=memory.available_bytes(),
            utilization=cache.gpu_memory_utilization,
            weight_bytes=weight_bytes,
            activation_bytes=memory.estimate_activation_bytes(
                self.architecture, num_tokens=scheduler.max_num_batched_tokens, num_rows=scheduler.max_num_seqs
            ),
            rest_bytes=memory.resident_bytes(),
            block_bytes=block_num_bytes(**self._kv_geometry(self._formats.kv_cache)),
            block_size=cache.block_size,
        )

    def _kv_geometry(self, kv_dtype: torch.dtype) -> dict[str, Any]:
        return {
            "num_layers": self.architecture.num_hidden_layers,
            "block_size": self._config.cache.block_size,
            "num_kv_heads": self.architecture.num_key_value_heads,
            "head_dim": self.architecture.head_dim,
            "dtype": kv_dtype,
        }

    def _warm_up(self) -> None:
        """Runs one short step, so that the first request does not pay for what torch sets up lazily."""
        slot, sequence_id = SlotIndex(0), SequenceId(0)
        new = NewSequence(
            sequence_id=sequence_id,
            slot=slot,
            token_ids=[0],
            num_prompt_tokens=1,
            num_computed_tokens=0,
            block_ids=[BlockId(0)],
            sampling=SamplingParams(temperature=0.0),
            seed=0,
            sample_index=0,
        )
        plan = StepPlan(
            step=0, new_sequences=[new], slots=[slot], sequence_ids=[sequence_id], num_tokens=[1], samples=[True]
        )
        self._execute(plan)
        self._runner.state.vacate(slot)
