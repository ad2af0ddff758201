"""The sampling parameters that the command line can set."""

from dataclasses import dataclass, fields

from quire.config.option import option
from quire.types.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn. What is left out comes from the model's own defaults."""

    max_tokens: int | None = option(256, human_integer=True, basic=True, help="Tokens per answer at most.")
    temperature: float | None = option(None, basic=True, help="0 takes the most likely token.")
    top_p: float | None = option(None, basic=True, help="Draw from the smallest set with this probability.")
    top_k: int | None = option(None, help="Draw from this many most likely tokens; 0 for all.")
    min_p: float | None = option(None, help="Drop tokens less likely than this fraction of the most likely one.")
    n: int | None = option(None, help="Answers per prompt.")
    best_of: int | None = option(None, help="Answers to produce, of which the n most likely are shown.")
    stop: tuple[str, ...] | None = option(None, help="String that ends the answer; repeatable.")
    stop_token_ids: tuple[int, ...] | None = option(None, help="Token that ends the answer; repeatable.")
    bad_words: tuple[str, ...] | None = option(None, help="String that must not be produced; repeatable.")
    presence_penalty: float | None = option(None, help="Subtracted from tokens that were produced already.")
    frequency_penalty: float | None = option(None, help="Subtracted once for every time a token was produced.")
    repetition_penalty: float | None = option(None, help="Above 1 discourages tokens of prompt and answer.")
    min_tokens: int | None = option(None, help="Tokens before any stop token or end-of-sequence.")
    ignore_eos: bool | None = option(None, help="Go on after end-of-sequence.")
    logprobs: int | None = option(None, help="With --json: report this many alternatives per token.")


def apply_sampling(defaults: SamplingParams, options: SamplingOptions) -> SamplingParams:
    """`defaults` with the options that were given.

    Raises:
        ParameterError: A value that breaks its rule.
    """
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    changes = {name: value for name, value in given.items() if value is not None}
    return defaults.with_changes(**changes)
