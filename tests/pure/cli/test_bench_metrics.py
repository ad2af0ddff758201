"""The maths of the benchmark against values computed by hand."""

import random
from itertools import pairwise

import pytest

from quire.entrypoints.cli.bench.arrivals import arrival_offsets
from quire.entrypoints.cli.bench.metrics import (
    RequestRecord,
    measure,
    meets,
    peak_concurrency,
    peak_output_tokens,
    percentile,
    spread,
)
from quire.entrypoints.cli.bench.report import (
    LoadShape,
    as_json,
    as_table,
    detailed_json,
    parse_goodput,
    parse_latencies,
    parse_pairs,
    parse_percentiles,
)
from quire.errors import ConfigError

INFINITY = float("inf")


def record(
    sent_at: float, choice_times: list[float], num_output_tokens: int, *, error: str | None = None
) -> RequestRecord:
    finished_at = choice_times[-1] if choice_times else sent_at
    return RequestRecord(10, sent_at, finished_at, choice_times, num_output_tokens, "text", error)


# TTFT 0.5, gaps 0.25 and 0.75, E2EL 1.5, TPOT (1.5 - 0.5) / 4.
FIRST = record(0.0, [0.5, 0.75, 1.5], 5)
# TTFT 0.25, gap 0.5, E2EL 0.75, TPOT 0.5.
SECOND = record(1.0, [1.25, 1.75], 2)
# One token: no TPOT and no gap.
SINGLE = record(2.0, [2.125], 1)
FAILED = record(2.5, [], 0, error="HTTP 429: full")


def test_the_latencies_of_one_request() -> None:
    assert (FIRST.ttft, FIRST.e2el, FIRST.tpot) == (0.5, 1.5, 0.25)
    assert FIRST.inter_token_latencies == [0.25, 0.75]
    assert (SINGLE.ttft, SINGLE.e2el, SINGLE.tpot, SINGLE.inter_token_latencies) == (0.125, 0.125, None, [])


@pytest.mark.parametrize(
    ("percentage", "expected"),
    [(0, 10.0), (10, 14.0), (25, 20.0), (50, 30.0), (90, 46.0), (99, 49.6), (100, 50.0)],
)
def test_percentiles_are_linear_between_neighbours(percentage: float, expected: float) -> None:
    assert percentile([10.0, 20.0, 30.0, 40.0, 50.0], percentage) == pytest.approx(expected)


def test_percentiles_of_one_and_two_values() -> None:
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.5


def test_spread_of_values_in_any_order() -> None:
    found = spread([9.0, 2.0, 4.0, 4.0, 5.0, 7.0, 4.0, 5.0], [50])
    assert (found.mean, found.median, found.std) == (5.0, 4.5, 2.0)
    assert found.percentiles == {50: 4.5}
    assert spread([], [90]).percentiles == {90: 0.0}


def test_a_run() -> None:
    metrics = measure([FIRST, SECOND, SINGLE, FAILED], 4.0, percentiles=[50, 90], limits={"ttft": 0.3, "tpot": 0.6})
    assert (metrics.completed, metrics.failed, metrics.failures) == (3, 1, {"HTTP 429: full": 1})
    assert (metrics.total_input_tokens, metrics.total_output_tokens) == (30, 8)
    assert (metrics.request_throughput, metrics.output_throughput) == (0.75, 2.0)
    assert metrics.total_token_throughput == 9.5
    assert metrics.goodput == 0.5
    assert metrics.latencies["ttft"].mean == pytest.approx(0.875 / 3)
    assert metrics.latencies["ttft"].median == 0.25
    assert metrics.latencies["tpot"].mean == 0.375
    assert metrics.latencies["itl"].mean == 0.5
    assert metrics.latencies["itl"].percentiles == {50: 0.5, 90: pytest.approx(0.7)}
    assert metrics.latencies["e2el"].percentiles == {50: 0.75, 90: pytest.approx(1.35)}


def test_goodput_needs_every_limit_and_counts_a_single_token_as_fast() -> None:
    assert meets(SINGLE, {"tpot": 1e-9})
    assert meets(FIRST, {"ttft": 0.5, "e2el": 1.5})
    assert not meets(FIRST, {"ttft": 0.5, "e2el": 1.4})
    assert measure([FIRST], 1.0, percentiles=[50]).goodput is None


def test_a_run_in_which_everything_failed() -> None:
    metrics = measure([FAILED, FAILED], 1.0, percentiles=[99], limits={"ttft": 1.0})
    assert (metrics.completed, metrics.failed, metrics.goodput) == (0, 2, 0.0)
    assert metrics.latencies["ttft"].percentiles == {99: 0.0}


def test_peaks() -> None:
    # Second 0: 2 of FIRST's 3 chunks with 5 tokens. Second 1: its last chunk, and both of SECOND's.
    assert peak_output_tokens([FIRST, SECOND]) == pytest.approx(5 / 3 + 2)
    assert peak_output_tokens([]) == 0.0
    assert peak_concurrency([FIRST, SECOND, SINGLE]) == 2
    assert peak_concurrency([record(0.0, [1.0], 1), record(1.0, [2.0], 1)]) == 1


def test_the_table_has_the_names_of_the_ecosystem() -> None:
    metrics = measure([FIRST, SECOND, FAILED], 2.0, percentiles=[50, 99.9], limits={"ttft": 9.0})
    table = as_table(metrics, LoadShape(4.0, 1.0, 8), ["ttft", "e2el"])
    for name in (
        *("Successful requests:", "Failed requests:", "Maximum request concurrency:", "Benchmark duration (s):"),
        *("Request rate configured (RPS):", "Total input tokens:", "Total generated tokens:", "Request goodput"),
        *("Request throughput", "Output token throughput", "Peak output token throughput", "Total token throughput"),
        *("Peak concurrent requests:", "Mean TTFT (ms):", "Median E2EL (ms):", "P99.9 TTFT (ms):"),
    ):
        assert name in table
    assert "1 x HTTP 429: full" in table
    assert "TPOT" not in table


def test_what_was_not_asked_is_not_in_the_table() -> None:
    table = as_table(measure([FIRST], 2.0, percentiles=[50]), LoadShape(INFINITY, 1.0, None), ["ttft"])
    assert "goodput" not in table
    assert "rate configured" not in table
    assert "Maximum request concurrency" not in table


def test_the_json_keys_of_the_ecosystem() -> None:
    metrics = measure([FIRST, SECOND], 2.0, percentiles=[50, 99.9])
    result = as_json(metrics, LoadShape(INFINITY, 1.0, None), ["ttft", "itl"])
    assert result["mean_ttft_ms"] == 375.0
    assert result["p50_itl_ms"] == 500.0
    assert {"std_ttft_ms", "median_itl_ms", "p99.9_ttft_ms"} <= result.keys()
    assert result["request_rate"] == "inf"
    assert result["request_goodput"] is None
    detailed = detailed_json([FIRST, FAILED])
    assert detailed["input_lens"] == [10, 10]
    assert detailed["itls"] == [[0.25, 0.75], []]
    assert detailed["errors"] == ["", "HTTP 429: full"]


def test_report_options() -> None:
    assert parse_latencies(" ttft, e2el ") == ["ttft", "e2el"]
    assert parse_percentiles("99,50,99.9") == [50.0, 99.0, 99.9]
    assert parse_goodput(["ttft:200", "tpot:50.5"]) == {"ttft": 0.2, "tpot": 0.0505}
    assert parse_pairs("metadata", ["a=b=c"]) == {"a": "b=c"}


@pytest.mark.parametrize("text", ["", "ttft,foo"])
def test_refused_latencies(text: str) -> None:
    with pytest.raises(ConfigError, match="percentile_metrics"):
        parse_latencies(text)


@pytest.mark.parametrize("text", ["", "x", "101", "-1"])
def test_refused_percentiles(text: str) -> None:
    with pytest.raises(ConfigError, match="metric_percentiles"):
        parse_percentiles(text)


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:0", "ttft:-1", "itl:5", "ttft:nan"])
def test_refused_goodput(word: str) -> None:
    with pytest.raises(ConfigError, match="goodput"):
        parse_goodput([word])


def test_arrivals_keep_the_rate_that_was_asked_for() -> None:
    for burstiness in (0.2, 1.0, 5.0):
        offsets = arrival_offsets(101, 20.0, burstiness, random.Random(1))
        assert offsets[0] == 0.0
        assert offsets[-1] == pytest.approx(5.0)
        assert offsets == sorted(offsets)


def test_burstiness_is_the_shape_of_the_gaps() -> None:
    def variation(burstiness: float) -> float:
        offsets = arrival_offsets(20_001, 1.0, burstiness, random.Random(2))
        gaps = spread([later - earlier for earlier, later in pairwise(offsets)], [50])
        return gaps.std / gaps.mean

    # The coefficient of variation of a gamma distribution is 1 / sqrt(shape).
    assert variation(1.0) == pytest.approx(1.0, rel=0.05)
    assert variation(4.0) == pytest.approx(0.5, rel=0.05)
    assert variation(0.25) == pytest.approx(2.0, rel=0.05)


def test_arrivals_without_a_rate_come_at_once() -> None:
    assert arrival_offsets(3, INFINITY, 1.0, random.Random(0)) == [0.0, 0.0, 0.0]
    assert arrival_offsets(0, 1.0, 1.0, random.Random(0)) == []
    assert arrival_offsets(1, 1.0, 1.0, random.Random(0)) == [0.0]
