"""Decides whether the grammar of a request may go to the engine: compiled once elsewhere, with limits."""

import asyncio
import contextlib
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from quire.engine.grammar import GrammarVocabulary
from quire.errors import EngineError, InvalidRequestError, OverloadedError
from quire.frontend.grammar_helper import CPU_SECONDS, LENGTH

logger = logging.getLogger("quire.frontend")

NUM_HELPERS = 2
"""Processes: while one fights with a hostile grammar, others are still checked."""

MAX_WAITING = 256
MAX_REMEMBERED = 1024
WAIT_SECONDS = 30.0
"""For an answer, however busy the machine is; the helper itself counts its own seconds."""

START_SECONDS = 120.0
STOP_SECONDS = 5.0


class GrammarGuard:
    """Compiles grammars in helper processes, which start with the first grammar, and remembers what came of them.

    Args:
        load_vocabulary: Called in a thread when the first helper starts.
    """

    def __init__(self, load_vocabulary: Callable[[], GrammarVocabulary]) -> None:
        self._load_vocabulary = load_vocabulary
        self._vocabulary: bytes | None = None
        self._verdicts: OrderedDict[str, str] = OrderedDict()
        self._running: dict[str, asyncio.Future[str]] = {}
        self._idle: asyncio.LifoQueue[_Helper] = asyncio.LifoQueue()
        self._helpers: list[_Helper] = []

    async def check(self, grammar: str, param: str) -> None:
        """Returns once a grammar is known to compile within the limits.

        Args:
            grammar: As `lower` makes it.
            param: The field that it comes from.

        Raises:
            InvalidRequestError: It does not.
            OverloadedError: Too many grammars wait to be checked.
            EngineError: No helper process can be started.
        """
        problem = self._verdicts.get(grammar)
        if problem is None:
            problem = await self._find_out(grammar)
        else:
            self._verdicts.move_to_end(grammar)
        if problem:
            raise InvalidRequestError(f"{param}: {problem}", param=param)

    async def close(self) -> None:
        """Ends the helper processes."""
        for helper in self._helpers:
            await helper.kill()

    async def _find_out(self, grammar: str) -> str:
        """Asks a helper; requests with the same grammar share one question."""
        running = self._running.get(grammar)
        if running is None:
            if len(self._running) >= MAX_WAITING:
                raise OverloadedError(
                    f"{len(self._running)} grammars wait to be checked", retry_after_seconds=CPU_SECONDS
                )
            running = self._running[grammar] = asyncio.ensure_future(self._ask(grammar))
            running.add_done_callback(lambda _: self._running.pop(grammar, None))
        # A caller that leaves does not take the answer from the others.
        return await asyncio.shield(running)

    async def _ask(self, grammar: str) -> str:
        helper = await self._take_helper()
        try:
            problem = await helper.ask(grammar.encode())
        except BaseException:
            await helper.kill()
            raise
        finally:
            self._idle.put_nowait(helper)
        self._verdicts[grammar] = problem
        if len(self._verdicts) > MAX_REMEMBERED:
            self._verdicts.popitem(last=False)
        return problem

    async def _take_helper(self) -> "_Helper":
        if self._vocabulary is None:
            self._vocabulary = msgspec.msgpack.encode(await asyncio.to_thread(self._load_vocabulary))
        if self._idle.empty() and len(self._helpers) < NUM_HELPERS:
            helper = _Helper(self._vocabulary)
            self._helpers.append(helper)
            return helper
        return await self._idle.get()


class _Helper:
    """One helper process; it is started when it is asked, and again when it has died."""

    def __init__(self, vocabulary: bytes) -> None:
        self._vocabulary = vocabulary
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, grammar: bytes) -> str:
        """What is wrong with a grammar; empty if nothing is."""
        if self._process is None and (problem := await self._start()):
            return problem
        try:
            return await asyncio.wait_for(self._exchange(grammar), WAIT_SECONDS)
        except (asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            await self._bury(is_dead=not isinstance(error, TimeoutError))
            return f"it takes more than {CPU_SECONDS:g} s or too much memory to compile"

    async def kill(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _bury(self, *, is_dead: bool) -> None:
        """Forgets the process; one that has closed its output is about to end by itself."""
        if is_dead and self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
                self._process = None
        await self.kill()

    async def _start(self) -> str:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quire.frontend.grammar_helper"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            problem = await asyncio.wait_for(self._exchange(self._vocabulary), START_SECONDS)
        except (asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            await self._bury(is_dead=not isinstance(error, TimeoutError))
            raise EngineError("the process that checks grammars does not start") from error
        if problem:
            await self.kill()
        return problem

    async def _exchange(self, body: bytes) -> str:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(LENGTH.pack(len(body)) + body)
        await process.stdin.drain()
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        return (await process.stdout.readexactly(length)).decode()
