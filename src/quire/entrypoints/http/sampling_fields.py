"""How tokens are drawn: fields that all APIs have."""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from quire.entrypoints.http.request_body import WHOLE, Count, CountOrAll, RequestBody
from quire.types.sampling import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MAX_STOP_TOKEN_IDS,
    SMALLEST_TEMPERATURE,
)

Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=1 / MAX_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)]
_TOKEN_ID_PATTERN = r"^[0-9]{1,10}$"
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=_TOKEN_ID_PATTERN)], float],
    Field(max_length=MAX_LOGIT_BIAS),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {_TOKEN_ID_PATTERN: {"type": "number"}},
            "additionalProperties": False,
            "maxProperties": MAX_LOGIT_BIAS,
        }
    ),
]
_SAME_NAME = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "stop_token_ids", "bad_words", "ignore_eos", "min_tokens", "skip_special_tokens"),
)


class SamplingFields(RequestBody):
    """A request that says how to draw tokens."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 takes the most likely token; 1 draws from the model's distribution."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Draw from the smallest set of tokens whose probability reaches this."
    )
    top_k: CountOrAll | None = Field(None, description="Draw from this many most likely tokens; 0 or -1 for all.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Drop tokens less likely than this fraction of the most likely one."
    )
    presence_penalty: Penalty | None = Field(
        None, description="Subtracted from the logit of a token that was produced already."
    )
    frequency_penalty: Penalty | None = Field(None, description="Subtracted once for every time it was produced.")
    repetition_penalty: RepetitionPenalty | None = Field(
        None, description="Divides positive and multiplies negative logits of tokens in prompt or answer."
    )
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), WHOLE] | None = Field(None, description="-1 draws one.")
    stop_token_ids: Annotated[list[Count], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = Field(
        None, description="Tokens that end the answer, beside end-of-sequence."
    )
    bad_words: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_BAD_WORDS)] | None = Field(
        None, description="Strings that must not be produced."
    )
    ignore_eos: bool | None = Field(None, description="Go on after end-of-sequence.")
    min_tokens: Count | None = Field(None, description="Tokens to produce before anything may end the answer.")
    skip_special_tokens: bool | None = Field(None, description="Leave control tokens out of the text; default true.")
    logit_bias: LogitBias | None = Field(
        None, description="Added to the logits of tokens, by id; clamped to -100 and 100."
    )

    def drawing(self) -> dict[str, Any]:
        """What the request says about it, by the names of sampling parameters."""
        changes = {name: value for name in _SAME_NAME if (value := getattr(self, name)) is not None}
        if 0.0 < changes.get("temperature", 0.0) < SMALLEST_TEMPERATURE:
            changes["temperature"] = SMALLEST_TEMPERATURE
        if self.logit_bias is not None:
            changes["logit_bias"] = {int(key): bias for key, bias in self.logit_bias.items()}
        return changes
