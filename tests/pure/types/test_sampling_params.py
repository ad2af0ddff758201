"""SamplingParams: defaults, normal forms, and one rejection per rule."""

import math
from typing import Any

import msgspec
import pytest

from quire.errors import ParameterError
from quire.types.request import GenerationRequest
from quire.types.sampling import MAX_SAMPLES, RequestOutputKind, SamplingParams

REJECTED = [
    ("n", 0),
    ("n", MAX_SAMPLES + 1),
    ("n", 1.5),
    ("n", True),
    ("best_of", 0),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", math.nan),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 2.0),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -2.5),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", math.inf),
    ("seed", 2**63),
    ("seed", "1"),
    ("stop", [""]),
    ("stop", [1]),
    ("stop", ["x"] * 65),
    ("stop", "x" * 2000),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["1"]),
    ("stop_token_ids", list(range(2000))),
    ("bad_words", [""]),
    ("bad_words", ["x"] * 129),
    ("max_tokens", 0),
    ("min_tokens", -1),
    ("min_tokens", 17),
    ("logprobs", -2),
    ("logprobs", 1.0),
    ("prompt_logprobs", -2),
    ("logit_bias", {-1: 0.0}),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [-4]),
    ("spaces_between_special_tokens", False),
]


@pytest.mark.parametrize(("name", "value"), REJECTED)
def test_rejection_names_field_and_value(name: str, value: Any) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name
    assert str(caught.value).startswith(f"{name} must be ")
    assert "got " in str(caught.value)


def test_a_parameter_error_is_a_value_error_with_a_short_text() -> None:
    with pytest.raises(ValueError, match="temperature must be in"):
        SamplingParams(temperature=3)
    with pytest.raises(ParameterError) as caught:
        SamplingParams(stop=["y" * 5000])
    assert len(str(caught.value)) < 250


def test_greedy_runs_one_sample() -> None:
    with pytest.raises(ParameterError, match="n must be 1 with temperature 0"):
        SamplingParams(n=2, temperature=0)
    with pytest.raises(ParameterError, match="best_of must be 1 with temperature 0"):
        SamplingParams(best_of=2, temperature=0)


def test_best_of_covers_n() -> None:
    assert SamplingParams(n=2, best_of=4).num_samples == 4
    assert SamplingParams(n=3).num_samples == 3
    with pytest.raises(ParameterError, match="best_of must be between 4 and"):
        SamplingParams(n=4, best_of=2)


def test_a_small_temperature_is_raised_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="raised to 0.01"):
        assert SamplingParams(temperature=0.001).temperature == 0.01


def test_normal_forms() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[3, 1, 3], seed=-1, logit_bias={5: 200.0, 6: -300})
    assert params.stop == ["end"]
    assert params.stop_token_ids == [3, 1]
    assert params.seed is None
    assert params.logit_bias == {5: 100.0, 6: -100.0}
    assert SamplingParams().stop == []
    assert SamplingParams().max_tokens == 16


def test_stop_strings_need_text() -> None:
    with pytest.raises(ParameterError, match="stop must be empty with detokenize=False"):
        SamplingParams(stop=["x"], detokenize=False)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="use_beam_search"):
        SamplingParams(use_beam_search=True)  # type: ignore[call-arg]


def test_a_request_survives_the_wire() -> None:
    request = GenerationRequest(
        request_id="r",  # type: ignore[arg-type]
        prompt_token_ids=[1, 2, 3],
        sampling=SamplingParams(n=2, seed=7, stop=["a"], logit_bias={3: 1.5}, allowed_token_ids=[1, 2]),
        eos_token_ids=(2,),
        bad_words_token_ids=((4, 5),),
        produced_token_ids=((9,), ()),
    )
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=GenerationRequest)
    assert decoded == request
    assert decoded.stop_token_ids == frozenset({2})


def test_completing_changes_three_fields_and_nothing_else() -> None:
    params = SamplingParams(n=2, stop="x", logit_bias={3: 500.0}, max_tokens=None, min_tokens=3, stop_token_ids=[4, 4])
    changes: dict[str, Any] = {"max_tokens": 9, "seed": 5, "output_kind": RequestOutputKind.FINAL_ONLY}
    assert params.completed(**changes) == params.with_changes(**changes)
    assert (params.max_tokens, params.seed) == (None, None)


@pytest.mark.parametrize(
    ("wish", "shows_progress", "needs_every_token"),
    [
        ({}, True, True),
        ({"output_kind": RequestOutputKind.DELTA}, True, True),
        ({"output_kind": RequestOutputKind.FINAL_ONLY}, False, False),
        ({"output_kind": RequestOutputKind.FINAL_ONLY, "n": 3}, False, False),
        ({"output_kind": RequestOutputKind.FINAL_ONLY, "stop": ["x"]}, False, True),
        ({"output_kind": RequestOutputKind.FINAL_ONLY, "logprobs": 0}, False, True),
        ({"n": 2, "best_of": 3}, False, False),
    ],
)
def test_who_looks_at_an_answer_before_its_end(
    wish: dict[str, Any], shows_progress: bool, needs_every_token: bool
) -> None:
    params = SamplingParams(**wish)
    assert (params.shows_progress, params.needs_every_token) == (shows_progress, needs_every_token)
