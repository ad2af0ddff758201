"""Compiles grammars beside the loop, and lets a request in when its grammar is ready."""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from llguidance import LLMatcher, LLTokenizer

from quire.engine.grammar import GrammarVocabulary, SampleConstraint, compile_grammar, make_tokenizer, try_out
from quire.errors import QuireError
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest

logger = logging.getLogger("quire.engine")

_NUM_THREADS = 2
_MAX_KEPT_GRAMMARS = 128


class GrammarCompiler:
    """Compiles grammars on threads of its own and keeps the last ones.

    Args:
        load_vocabulary: Called once, on one of the threads, before the first compilation.
        max_kept: Grammars whose initial state is kept.
    """

    def __init__(self, load_vocabulary: Callable[[], GrammarVocabulary], *, max_kept: int = _MAX_KEPT_GRAMMARS) -> None:
        self._load_vocabulary = load_vocabulary
        self._max_kept = max_kept
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="quire-grammar")
        self._tokenizer: Future[tuple[LLTokenizer, tuple[int, ...]]] | None = None
        self._kept: OrderedDict[str, Future[LLMatcher]] = OrderedDict()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer; waits for the vocabulary."""
        return self.prepare().result()[1]

    def prepare(self) -> "Future[tuple[LLTokenizer, tuple[int, ...]]]":
        """Begins to load the vocabulary, if nobody has."""
        if self._tokenizer is None:
            self._tokenizer = self._threads.submit(self._load)
        return self._tokenizer

    def compile(self, grammar: str) -> "Future[LLMatcher]":
        """The initial state of a grammar, to be copied and not to be modified. Called from one thread."""
        kept = self._kept.get(grammar)
        if kept is None:
            # Submitted first, so that it never waits for a thread that waits for it.
            tokenizer = self.prepare()
            kept = self._kept[grammar] = self._threads.submit(lambda: _compile(tokenizer.result()[0], grammar))
            if len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        return kept

    def _load(self) -> tuple[LLTokenizer, tuple[int, ...]]:
        vocabulary = self._load_vocabulary()
        return make_tokenizer(vocabulary), vocabulary.eos_token_ids


def _compile(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = compile_grammar(tokenizer, grammar)
    try_out(tokenizer, matcher)
    return matcher


@dataclass(slots=True)
class PreparedRequest:
    """A request whose grammar is ready, with a constraint per sample; or `error`, the reason why it never will be."""

    request: GenerationRequest
    constraints: list[SampleConstraint] = field(default_factory=list)
    error: str | None = None


class GrammarIntake:
    """Requests with a grammar, on their way to the scheduler. Belongs to the thread of the loop.

    Attributes:
        notify: Called, from any thread, when a request has become ready.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self.notify: Callable[[], None] = lambda: None
        self._compiler = compiler
        self._pending: dict[RequestId, GenerationRequest] = {}
        self._ready: deque[PreparedRequest] = deque()
        self._changed = threading.Condition()

    @property
    def has_pending(self) -> bool:
        """Whether a request has been added and not taken."""
        return bool(self._pending)

    @property
    def has_ready(self) -> bool:
        """Whether `take_ready` has something to give."""
        return bool(self._ready)

    def add(self, request: GenerationRequest) -> None:
        """Begins to compile a request's grammar."""
        self._pending[request.request_id] = request
        compiled = self._compiler.compile(request.grammar)
        compiled.add_done_callback(lambda future: self._finish(request, future))

    def abort(self, request_id: RequestId) -> None:
        """Forgets a request. Unknown ids have no effect."""
        self._pending.pop(request_id, None)

    def take_ready(self, *, wait: bool) -> list[PreparedRequest]:
        """Requests that have become ready, in that order; waits for one if told to and if there is one to wait for."""
        if not self._pending and not self._ready:
            return []
        with self._changed:
            if wait and self._pending:
                self._changed.wait_for(lambda: self._ready)
            ready, self._ready = self._ready, deque()
        return [item for item in ready if self._pending.pop(item.request.request_id, None) is item.request]

    def _finish(self, request: GenerationRequest, compiled: "Future[LLMatcher]") -> None:
        prepared = PreparedRequest(request)
        try:
            prepared.constraints = self._constraints(request, compiled.result())
        except QuireError as error:
            prepared.error = f"the grammar cannot be used: {error.message}"
        except Exception:
            logger.exception("a grammar of %d characters could not be compiled", len(request.grammar))
            prepared.error = "the grammar could not be compiled"
        with self._changed:
            self._ready.append(prepared)
            self._changed.notify()
        self.notify()

    def _constraints(self, request: GenerationRequest, compiled: LLMatcher) -> list[SampleConstraint]:
        sampling = request.sampling
        constraints = []
        for index in range(request.num_samples):
            constraint = SampleConstraint(
                compiled.deep_copy(),
                eos_token_ids=self._compiler.eos_token_ids,
                stop_token_ids=request.stop_token_ids,
                num_unending_tokens=None if sampling.ignore_eos else sampling.min_tokens,
            )
            produced = request.produced_token_ids[index] if index < len(request.produced_token_ids) else ()
            for token_id in produced:
                constraint.advance(token_id)
            constraints.append(constraint)
        return constraints
