"""The processes that compile grammars from strangers."""

import asyncio

import pytest

from quire.engine.grammar import GrammarVocabulary
from quire.errors import EngineError, InvalidRequestError, OverloadedError
from quire.frontend import grammar_guard
from quire.frontend.grammar_guard import GrammarGuard
from quire.frontend.structured_outputs import lower
from quire.testing.vocabulary import make_vocabulary
from quire.types.structured_outputs import StructuredOutputsParams


def hostile(first="a"):
    """Needs minutes to compile."""
    patterns = [{"pattern": f".*{letter}{first}.*"} for letter in "abcdefghijklmnopqrstuvwxyz"]
    return lower(StructuredOutputsParams(json={"type": "string", "allOf": patterns}))


def guarded(use, load_vocabulary=make_vocabulary):
    """Runs `use` with a guard, and closes it."""

    async def run():
        guard = GrammarGuard(load_vocabulary)
        try:
            return await use(guard)
        finally:
            await guard.close()

    return asyncio.run(run())


def test_a_grammar_that_takes_too_long_is_refused_and_its_process_replaced():
    async def use(guard):
        await guard.check("start: /a/", "structured_outputs.grammar")
        (first,) = [helper._process.pid for helper in guard._helpers]
        bad = asyncio.ensure_future(guard.check(hostile(), "structured_outputs.json"))
        for _ in range(4):
            # Until it has taken the first helper.
            await asyncio.sleep(0)
        assert guard._idle.empty()
        await guard.check("start: /b/", "structured_outputs.grammar")
        assert not bad.done()
        with pytest.raises(InvalidRequestError, match="takes more than 2 s or too much memory") as caught:
            await bad
        assert caught.value.param == "structured_outputs.json"
        # Remembered, so that sending it again costs nothing.
        with pytest.raises(InvalidRequestError, match="takes more than 2 s"):
            await asyncio.wait_for(guard.check(hostile(), "structured_outputs.json"), 0.5)
        await asyncio.gather(*(guard.check(f"start: /{letter}{letter}/", "x") for letter in "abcd"))
        assert first not in [helper._process.pid for helper in guard._helpers]

    guarded(use)


def test_the_reason_reaches_the_caller():
    async def use(guard):
        with pytest.raises(InvalidRequestError, match="unknown name") as caught:
            await guard.check("start: nothing", "structured_outputs.grammar")
        return caught.value.param

    assert guarded(use) == "structured_outputs.grammar"


def test_a_caller_that_leaves_does_not_take_the_answer_from_others():
    async def use(guard):
        leaves = asyncio.ensure_future(guard.check("start: /a/", "x"))
        stays = asyncio.ensure_future(guard.check("start: /a/", "x"))
        await asyncio.sleep(0)
        leaves.cancel()
        await stays
        assert leaves.cancelled()

    guarded(use)


def test_too_many_waiting_grammars_are_refused(monkeypatch):
    monkeypatch.setattr(grammar_guard, "MAX_WAITING", 2)

    async def use(guard):
        waiting = [asyncio.ensure_future(guard.check(f"start: /{letter}/", "x")) for letter in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 grammars wait"):
            await guard.check("start: /c/", "x")
        await asyncio.gather(*waiting)
        await guard.check("start: /c/", "x")

    guarded(use)


def test_a_tokenizer_that_grammars_cannot_use_is_said_so():
    broken = GrammarVocabulary(tokenizer_json="{}", vocab_size=8, eos_token_ids=(1,))

    async def use(guard):
        with pytest.raises(InvalidRequestError, match="do not work with this tokenizer"):
            await guard.check("start: /a/", "x")

    guarded(use, lambda: broken)


def test_a_helper_that_does_not_start(monkeypatch):
    monkeypatch.setattr(grammar_guard.sys, "executable", "/bin/false")

    async def use(guard):
        with pytest.raises(EngineError, match="does not start"):
            await guard.check("start: /a/", "x")

    guarded(use)
