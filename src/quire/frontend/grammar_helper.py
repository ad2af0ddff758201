"""A process that compiles grammars from strangers, so that one which cannot be stopped can be killed.

`python -m quire.frontend.grammar_helper`: reads frames from standard input, the vocabulary first and then grammars,
and answers each on standard output with a text, empty if all is well.
"""

import resource
import signal
import struct
import sys
from contextlib import suppress

import msgspec

from quire.engine.grammar import GrammarVocabulary, compile_grammar, make_tokenizer, try_out
from quire.errors import InvalidRequestError

CPU_SECONDS = 2.0
"""For one grammar, after which the process is ended."""

MEMORY_BYTES = 1 << 30
"""That the process may allocate beside what the vocabulary takes."""

LENGTH = struct.Struct("<I")


def main() -> None:
    """Serves until standard input ends."""
    vocabulary = msgspec.msgpack.decode(_read() or b"", type=GrammarVocabulary)
    try:
        tokenizer = make_tokenizer(vocabulary)
    except InvalidRequestError as error:
        _write(error.message)
        return
    _write("")
    _limit_memory()
    while (body := _read()) is not None:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            try_out(tokenizer, compile_grammar(tokenizer, body.decode()))
            problem = ""
        except InvalidRequestError as error:
            problem = error.message
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _write(problem)


def _limit_memory() -> None:
    with suppress(OSError, ValueError), open("/proc/self/statm", "rb") as file:
        address_space = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (address_space + MEMORY_BYTES, hard))


def _read() -> bytes | None:
    header = sys.stdin.buffer.read(LENGTH.size)
    return sys.stdin.buffer.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else None


def _write(text: str) -> None:
    body = text.encode("utf-8", "replace")
    sys.stdout.buffer.write(LENGTH.pack(len(body)) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
