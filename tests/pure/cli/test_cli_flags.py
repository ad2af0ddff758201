"""Flags in every spelling, their kinds, and what is refused."""

from dataclasses import dataclass
from typing import Any

import pytest

from quire.config.option import option
from quire.config.server import ServerConfig
from quire.entrypoints.cli.command_line import ENGINE_GROUPS, CommandLine, FileOptions
from quire.entrypoints.cli.flags import human_integer_text, parse_human_integer
from quire.errors import ConfigError

SERVE = CommandLine(
    name="serve",
    summary="",
    groups={"server": ServerConfig, **ENGINE_GROUPS, "file": FileOptions},
    bare_word="model",
)


@dataclass(frozen=True, kw_only=True)
class OddOptions:
    """Kinds that no engine option has."""

    ids: tuple[int, ...] | None = option(None, help="Numbers.")
    disable_noise: bool = option(False, help="Silence.")
    quick: str | None = option(None, aliases=("-q", "--fast"), help="A word.")


ODD = CommandLine(name="odd", summary="", groups={"odd": OddOptions})


def values(*words: str) -> dict[str, Any]:
    return dict(SERVE.parse(words).values)


@pytest.mark.parametrize(
    "words",
    [
        ("--max-model-len", "4096"),
        ("--max_model_len", "4096"),
        ("--max-model-len=4096",),
        ("--max_model_len=4096",),
        ("--max-model_len", "4K"),
    ],
)
def test_dashes_and_underscores_are_equal(words: tuple[str, ...]) -> None:
    assert values(*words) == {"max_model_len": 4096}


def test_an_underscore_in_a_value_stays() -> None:
    assert values("--served-model-name=my_model") == {"served_model_name": ("my_model",)}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--enable-prefix-caching", True),
        ("--no-enable-prefix-caching", False),
        ("--disable-prefix-caching", False),
        ("--no_enable_prefix_caching", False),
    ],
)
def test_switches_have_opposites(word: str, expected: bool) -> None:
    assert values(word) == {"enable_prefix_caching": expected}


def test_a_disabling_switch_has_an_enabling_opposite() -> None:
    assert ODD.parse(["--enable-noise"]).values == {"disable_noise": False}


def test_the_last_switch_wins() -> None:
    assert values("--disable-log-stats", "--no-disable-log-stats") == {"disable_log_stats": False}


@pytest.mark.parametrize("words", [("-q", "x"), ("-q=x",), ("--fast", "x"), ("--quick=x",)])
def test_aliases(words: tuple[str, ...]) -> None:
    assert ODD.parse(words).make(OddOptions).quick == "x"


def test_several_values_and_repetition() -> None:
    assert values("--api-key", "a", "b", "--api-key", "c") == {"api_key": ("a", "b", "c")}
    assert ODD.parse(["--ids", "1", "2"]).make(OddOptions).ids == (1, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("1k", 1000),
        ("1K", 1024),
        ("2m", 2_000_000),
        ("2M", 2_097_152),
        ("1g", 10**9),
        ("1G", 2**30),
        ("25.6k", 25_600),
        ("0.5m", 500_000),
        ("-1", -1),
        ("1.5K", None),
        ("1.5", None),
        ("1.0005k", None),
        ("k", None),
        ("1kb", None),
        ("1e3", None),
        ("", None),
    ],
)
def test_human_integers(text: str, expected: int | None) -> None:
    assert parse_human_integer(text) == expected


@pytest.mark.parametrize(
    ("number", "text"), [(32 * 2**20, "32M"), (4096, "4096"), (100_000, "100000"), (64 * 1024, "64K")]
)
def test_human_integers_are_shown_short_where_exact(number: int, text: str) -> None:
    assert human_integer_text(number) == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", "http"), "--port must be an integer, got 'http'"),
        (("--max-model-len", "1.5K"), "--max-model-len must be an integer such as 4096, 4k"),
        (("--gpu-memory-utilization", "most"), "--gpu-memory-utilization must be a number, got 'most'"),
        (("--dtype", "int3"), "--dtype must be one of auto, half"),
        (("--port",), "--port: expected one argument"),
        (("a", "b"), "model is given more than once: 'a' and 'b'"),
        (("a", "--model", "b"), "model is given more than once: 'a' and 'b'"),
    ],
)
def test_refused_values(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values(*words)
    assert message in caught.value.message


def test_the_model_may_stand_anywhere_and_twice_if_equal() -> None:
    expected = {"model": "org/m", "port": 80}
    assert values("org/m", "--port", "80") == expected
    assert values("--port", "80", "org/m") == expected
    assert values("--model", "org/m", "--port", "80") == expected
    assert values("org/m", "--model=org/m", "--port", "80") == expected


def test_an_unknown_flag_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="unknown flag --max-modl-len") as caught:
        values("m", "--max_modl_len", "5")
    assert "did you mean --max-model-len?" in str(caught.value.hint)


def test_flags_are_not_abbreviated() -> None:
    with pytest.raises(ConfigError, match="unknown flag --max-model"):
        values("--max-model", "5")


def test_a_command_without_a_bare_word_refuses_one() -> None:
    with pytest.raises(ConfigError, match="takes no argument without a flag, got 'word'"):
        ODD.parse(["word"])


def test_options_reach_their_owners() -> None:
    arguments = SERVE.parse(["m", "--block-size", "32", "--port", "80", "--max-num-seqs", "2"])
    config, server = arguments.make_engine_config(), arguments.make(ServerConfig)
    assert (config.model.model, config.cache.block_size, config.scheduler.max_num_seqs) == ("m", 32, 2)
    assert (server.port, server.host) == (80, "127.0.0.1")
    assert arguments.engine_options() == {"model": "m", "block_size": 32, "max_num_seqs": 2}


def test_an_owner_refuses_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match="block_size must be a power of two, got 24"):
        values_of = SERVE.parse(["--block-size", "24"])
        values_of.make_engine_config()
