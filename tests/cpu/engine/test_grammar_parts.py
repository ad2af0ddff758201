import dataclasses
from concurrent.futures import CancelledError

import pytest
from llguidance import LLMatcher

from quire.engine.grammar import SampleConstraint, compile_grammar, is_empty, make_tokenizer
from quire.engine.grammar_compiler import GrammarCompiler
from quire.engine.grammar_masks import MaskMaker
from quire.errors import InvalidRequestError
from quire.testing.tokens import VOCAB_SIZE
from quire.testing.vocabulary import EOS_TOKEN_IDS


def constraint(tokenizer, grammar, **options):
    return SampleConstraint(compile_grammar(tokenizer, grammar).deep_copy(), eos_token_ids=EOS_TOKEN_IDS, **options)


def masks_of(*constraints):
    """Allowed tokens of each."""
    promise = MaskMaker(VOCAB_SIZE).promise(list(enumerate(constraints)))
    promise.start()
    words = memoryview(promise.result()).cast("I")
    num_words = len(words) // len(constraints)
    rows = [words[row * num_words : (row + 1) * num_words] for row in range(len(constraints))]
    return [{token for token in range(32 * num_words) if row[token >> 5] >> (token & 31) & 1} for row in rows]


def test_masks_are_those_of_the_matchers(grammar_tokenizer):
    grammars = ["start: /[0-9]+/", 'start: "ab" | "cd"', "start: /(ab)*/"]
    constraints = [constraint(grammar_tokenizer, grammar) for grammar in grammars]
    for grammar, allowed in zip(grammars, masks_of(*constraints), strict=True):
        mask = LLMatcher(grammar_tokenizer, grammar).compute_bitmask()
        assert allowed == {token for token in range(VOCAB_SIZE) if mask[token // 8] >> (token % 8) & 1}
        assert max(allowed) < VOCAB_SIZE


def test_what_ends_the_answer_is_taken_out_while_something_else_is_left(grammar_tokenizer):
    def allowed(grammar, **options):
        return masks_of(constraint(grammar_tokenizer, grammar, **options))[0] & {*EOS_TOKEN_IDS, ord("b") + 4}

    b = ord("b") + 4
    assert allowed("start: /b*/") == {*EOS_TOKEN_IDS, b}
    assert allowed("start: /b*/", num_unending_tokens=1) == {b}
    assert allowed("start: /b*/", num_unending_tokens=None) == {b}
    assert allowed("start: /b*/", stop_token_ids=[b]) == {*EOS_TOKEN_IDS, b}
    # All of them end the answer: the grammar goes before the request.
    assert allowed("start: /b/", stop_token_ids=[b], num_unending_tokens=1) == {b}


def test_a_whole_answer_wants_no_mask(grammar_tokenizer):
    whole = constraint(grammar_tokenizer, 'start: "a"')
    assert whole.advance(ord("a") + 4) is None
    assert whole.is_complete and not whole.ended_by_eos
    ended = constraint(grammar_tokenizer, "start: /a*/")
    ended.advance(EOS_TOKEN_IDS[1])
    assert ended.is_complete and ended.ended_by_eos
    assert all(len(allowed) > VOCAB_SIZE - 1 for allowed in masks_of(whole, ended))


def test_a_token_that_the_grammar_forbids_ends_the_sample(grammar_tokenizer):
    wrong = constraint(grammar_tokenizer, 'start: "a"')
    assert "cannot be followed" in wrong.advance(ord("b") + 4)
    assert wrong.is_over and not wrong.is_complete
    assert wrong.advance(ord("a") + 4) == wrong.error


def test_promised_masks_can_be_given_up(grammar_tokenizer):
    promise = MaskMaker(VOCAB_SIZE).promise([(0, constraint(grammar_tokenizer, "start: /a/"))])
    promise.cancel()
    promise.start()
    with pytest.raises(CancelledError):
        promise.result()


def test_only_the_last_grammars_are_kept(vocabulary):
    loads = []

    def load():
        loads.append(1)
        return vocabulary

    compiler = GrammarCompiler(load, max_kept=2)
    first = compiler.compile("start: /a/").result()
    assert compiler.compile("start: /a/").result() is first
    for letter in "bc":
        compiler.compile(f"start: /{letter}/").result()
    assert compiler.compile("start: /a/").result() is not first
    assert loads == [1]


def test_a_vocabulary_that_grammars_cannot_use(vocabulary):
    with pytest.raises(InvalidRequestError, match="end-of-sequence"):
        make_tokenizer(dataclasses.replace(vocabulary, eos_token_ids=()))
    with pytest.raises(InvalidRequestError, match="do not work with this tokenizer"):
        make_tokenizer(dataclasses.replace(vocabulary, tokenizer_json="{}"))


def test_an_empty_mask_is_seen():
    assert is_empty(memoryview(bytes(8)).cast("I"))
    assert not is_empty(memoryview(b"\0\0\0\0\0\0\0\x80").cast("I"))


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "x<eos>y"',
        'start: %json {"const": "<eos>"}',
        LLMatcher.grammar_from_json_schema('{"enum": ["a<a>b"]}'),
        '{"grammars": [{"lark_grammar": "start: @other"}, {"name": "other", "json_schema": {"const": "<b>"}}]}',
        '{"grammars": [{"lark_grammar": "start: @other"}, {"name": "other", "lark_grammar": "start: \\"<b>\\""}]}',
    ],
)
def test_a_text_that_reads_like_a_control_token_is_text(grammar_tokenizer, grammar):
    matcher = compile_grammar(grammar_tokenizer, grammar)
    tokens = []
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        tokens.append(min(token for token in range(VOCAB_SIZE) if mask[token // 8] >> (token % 8) & 1))
        assert matcher.consume_token(tokens[-1]), matcher.get_error()
    assert min(tokens) >= 4
    assert "<" in grammar_tokenizer.decode_str(tokens)


@pytest.mark.parametrize("grammar", ["{", "{}", '{"grammars": []}', '{"grammars": [5]}', '{"grammars": {}}'])
def test_what_is_no_list_of_grammars(grammar_tokenizer, grammar):
    with pytest.raises(InvalidRequestError, match="no list of grammars"):
        compile_grammar(grammar_tokenizer, grammar)
