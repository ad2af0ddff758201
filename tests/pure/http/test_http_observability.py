"""What the server tells about itself: metrics of HTTP, keys and rejections, vLLM's names, the log, the dashboard."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.entrypoints.http.metrics import MAX_KEY_NAMES, OTHER_KEYS
from quire.entrypoints.http.metrics_exposition import OUR_OWN
from quire.entrypoints.http.metrics_histogram import BucketCounts
from quire.entrypoints.http.request_log import logger as request_logger
from quire.entrypoints.log_format import log_formatter

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[3]
EVIL = 'x"\n{"level": "error", "forged": true}\r\x1b[31m\u2028\x00'


async def _metrics(server: Any, **headers: str) -> tuple[dict[tuple[str, ...], float], str]:
    """Values by name and labels, those of the engine left out; and the whole text."""
    text = (await server.client.get("/metrics", headers=headers)).text
    hidden = ("model_name", "engine")
    values = {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name not in hidden)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return values, text


async def test_http_requests_are_counted_by_route_method_and_status(serve: Any) -> None:
    async with serve() as server:
        await server.complete("a", max_tokens=1)
        await server.complete("a", max_tokens=1, stream=True)
        await server.complete("a", max_tokens=-1)
        await server.client.get("/v1/models/alias")
        await server.client.get("/v1/models/no-such-model")
        await server.client.get("/v1/completions")
        for number in range(3):
            await server.client.get(f"/made/up/{number}")
        await server.client.request("BREW", "/v1/models")
        await server.client.get("/health")
        values, text = await _metrics(server)
    name = "http_requests_total"
    assert values[name, "/v1/completions", "POST", "200"] == 2
    assert values[name, "/v1/completions", "POST", "400"] == 1
    assert values[name, "/v1/completions", "GET", "405"] == 1
    assert values[name, "unmatched", "GET", "404"] == 3
    assert values[name, "/v1/models", "OTHER", "405"] == 1
    assert sum(count for labels, count in values.items() if labels[0] == name) == 10
    assert values["http_request_duration_seconds_count", "/v1/completions", "POST"] == 3
    assert "/health" not in text and "made" not in text and "alias" not in text and "BREW" not in text


async def test_requests_and_tokens_are_counted_by_the_name_of_the_key(serve: Any) -> None:
    async with serve(api_key=("secret-one",)) as server:
        headers = {"Authorization": "Bearer secret-one"}
        await server.post("/v1/completions", {"prompt": "abcd", "max_tokens": 3}, headers=headers)
        await server.post("/v1/completions", {"prompt": "abcd", "max_tokens": 3, "stream": True}, headers=headers)
        await server.complete("abcd")
        refused = await server.client.get("/metrics")
        values, text = await _metrics(server, **headers)
    (name,) = {labels[1] for labels in values if labels[0] == "quire:key_requests_total"}
    assert values["quire:key_requests_total", name] == 2
    assert values["quire:key_prompt_tokens_total", name] == 8
    assert values["quire:key_generation_tokens_total", name] == 6
    assert values["http_requests_total", "/v1/completions", "POST", "401"] == 1
    assert "secret" not in text
    assert refused.status_code == 401


async def test_refusals_are_counted_by_reason(serve: Any) -> None:
    async with serve(max_num_queued_reqs=1) as server:
        server.port.may_step.clear()
        first = server.exchange("/v1/completions", {"prompt": "a", "max_tokens": 2})
        await server.until(lambda: server.port.requests)
        load = (await server.client.get("/load")).json()
        refused = await server.complete("b")
        first.leave()
        await first.task
        values, _ = await _metrics(server)
        idle = (await server.client.get("/load")).json()
    assert refused.status_code == 429
    assert values["quire:admission_rejections_total", "queue_full"] == 1
    assert values["http_requests_total", "/v1/completions", "POST", "499"] == 1
    assert (load, idle) == ({"server_load": 1}, {"server_load": 0})


async def test_what_a_request_needed_of_the_engine(serve: Any) -> None:
    async with serve() as server:
        for _ in range(2):
            await server.complete("x" * 64, max_tokens=4)
        await server.until(lambda: server.metrics.stats.num_running == 0)
        values, _ = await _metrics(server)
    assert values["quire:prompt_tokens_total",] == 128
    computed = values["quire:prompt_tokens_by_source_total", "local_compute"]
    cached = values["quire:prompt_tokens_by_source_total", "local_cache_hit"]
    assert (computed + cached, cached) == (128, values["quire:prompt_tokens_cached_total",])
    assert cached >= 48
    assert values["quire:request_prefill_kv_computed_tokens_sum",] == computed
    assert values["quire:request_max_num_generation_tokens_sum",] == 8
    assert values["quire:request_num_preemptions_bucket", "0.0"] == 2
    assert values["quire:num_requests_waiting_by_reason", "capacity"] == 0
    assert values["quire:num_requests_waiting_by_reason", "deferred"] == 0


async def test_vllm_names_show_the_same_values_and_only_what_vllm_has(serve: Any) -> None:
    async with serve() as server:
        plain = (await server.client.get("/metrics")).text
    async with serve(enable_vllm_metric_names=True) as server:
        await server.complete("x" * 40, max_tokens=4)
        await server.until(lambda: server.metrics.stats.num_running == 0)
        values, text = await _metrics(server)
    assert "vllm:" not in plain
    theirs = {labels: value for labels, value in values.items() if labels[0].startswith("vllm:")}
    ours = {labels: value for labels, value in values.items() if labels[0].startswith("quire:")}
    own = tuple(f"quire:{name}" for name in OUR_OWN)
    assert (
        theirs
        and {
            ("vllm:" + name.removeprefix("quire:"), *rest): value
            for (name, *rest), value in ours.items()
            if not name.startswith(own)
        }
        == theirs
    )
    assert "# TYPE vllm:time_to_first_token_seconds histogram" in text
    assert theirs["vllm:generation_tokens_total",] == 4


def test_names_of_keys_are_bounded(processor: Any) -> None:
    from types import SimpleNamespace

    from quire.entrypoints.http.metrics import ServerMetrics
    from quire.entrypoints.http.served_request import ServedRequest

    metrics = ServerMetrics(
        "m", SimpleNamespace(max_model_len=8, block_size=1, num_blocks=1, enable_prefix_caching=True)
    )  # type: ignore[arg-type]
    for number in range(MAX_KEY_NAMES + 5):
        scope = {"method": "POST", "state": {"key_name": f"key-{number}"}}
        metrics.on_request(ServedRequest(scope, "id", status=200))
    text = metrics.exposition().decode()
    assert f'key_name="key-{MAX_KEY_NAMES}"' not in text
    assert re.search(rf'quire:key_requests_total{{[^}}]*key_name="{re.escape(OTHER_KEYS)}"[^}}]*}} 5\.0', text)


def test_a_value_on_a_bound_is_in_its_bucket() -> None:
    counts = BucketCounts((1, 2.5))
    for value in (0.5, 1, 1.5, 2.5, 3):
        counts.observe(value)
    counts.observe(2, 3)
    assert counts.cumulative() == [("1.0", 2.0), ("2.5", 7.0), ("+Inf", 8.0)]
    assert counts.sum == 14.5


class Log:
    """The lines of the request log, as a handler of the server's would write them."""

    def __init__(self, kind: str) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(log_formatter(kind, "%(levelname)s %(name)s: %(message)s"))

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().split("\n")[:-1]


@pytest.fixture
def request_log() -> Iterator[Any]:
    logs: list[Log] = []

    def attach(kind: str) -> Log:
        logs.append(Log(kind))
        request_logger.addHandler(logs[-1].handler)
        request_logger.setLevel(logging.INFO)
        return logs[-1]

    yield attach
    for log in logs:
        request_logger.removeHandler(log.handler)
    request_logger.setLevel(logging.NOTSET)


async def test_the_log_has_a_line_per_request(serve: Any, request_log: Any) -> None:
    log = request_log("json")
    async with serve(enable_log_requests=True, api_key=("secret-one",)) as server:
        headers = {"Authorization": "Bearer secret-one", "X-Request-Id": "my-id"}
        body = {"prompt": ["x" * 40, "y"], "max_tokens": 3}
        await server.post("/v1/completions", body, headers=headers)
        await server.complete("z")
        await server.client.get("/metrics")
        exchange = server.exchange("/v1/completions", {"prompt": "a", "max_tokens": 400})
        await exchange.task
    lines = [json.loads(line) for line in log.lines]
    assert [line["status"] for line in lines] == [200, 401, 401]
    first = lines[0]
    assert (first["request_id"], first["answer_id"], first["model"]) == ("my-id", "cmpl-my-id", "fake")
    assert (first["method"], first["route"], first["logger"]) == ("POST", "/v1/completions", "quire.requests")
    assert (first["prompt_tokens"], first["cached_tokens"], first["output_tokens"]) == (41, 0, 6)
    assert first["finish_reasons"] == ["length"]
    assert 0 <= first["queue_seconds"] <= first["first_token_seconds"] <= first["total_seconds"]
    assert first["key"]
    assert lines[1]["error"] and "prompt" not in first
    assert not any("secret" in line for line in log.lines)


async def test_the_log_says_when_the_client_left(serve: Any, request_log: Any) -> None:
    log = request_log("json")
    async with serve(enable_log_requests=True) as server:
        exchange = server.exchange("/v1/completions", {"prompt": "a", "max_tokens": 400, "stream": True})
        await server.until(lambda: len(exchange.sent) > 3)
        exchange.leave()
        await exchange.task
    (line,) = [json.loads(line) for line in log.lines]
    assert (line["status"], line["client_left"], line["finish_reasons"]) == (200, True, ["abort"])
    assert 0 < line["output_tokens"] < 400


@pytest.mark.parametrize("kind", ["json", "text"])
async def test_no_client_can_write_a_line_of_the_log(serve: Any, request_log: Any, kind: str) -> None:
    log = request_log(kind)
    async with serve(enable_log_requests=True, log_prompts=True, max_log_len=120) as server:
        await server.complete(EVIL, max_tokens=1, request_id="id-1")
        await server.complete([5, 6, 7], max_tokens=1)
        await server.complete("a", model=EVIL)
        await server.complete("p" * 400, max_tokens=1)
        await server.client.get("/" + "%0aforged%1b")
    assert len(log.lines) == 5
    assert all(line.isascii() and line.isprintable() for line in log.lines)
    if kind == "json":
        lines = [json.loads(line) for line in log.lines]
        assert not any("forged" in line for line in lines)
        assert (lines[0]["prompt"], lines[1]["prompt"], lines[3]["prompt"]) == (EVIL, "5 6 7", "p" * 120)
    else:
        assert all(line.startswith("INFO quire.requests: request_id=") for line in log.lines)


def test_a_log_of_json_takes_exceptions_and_odd_values() -> None:
    formatter = log_formatter("json", "")
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        record = logging.LogRecord(
            "quire", logging.ERROR, "", 1, "%s", (EVIL,), (ValueError, error, error.__traceback__)
        )
    line = formatter.format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == EVIL
    assert "ValueError" in json.loads(line)["exception"]


async def test_every_answer_has_a_request_id(serve: Any) -> None:
    async with serve(api_key=("k",)) as server:
        key = {"Authorization": "Bearer k"}
        body = {"prompt": "a", "max_tokens": 1}
        answers = [
            await server.post("/v1/completions", body, headers={**key, "X-Request-Id": "mine"}),
            await server.post("/v1/completions", {**body, "stream": True}, headers={**key, "X-Request-Id": "mine"}),
            await server.post("/v1/completions", {**body, "max_tokens": -1}, headers={**key, "X-Request-Id": "mine"}),
            await server.post("/v1/completions", body, headers={"X-Request-Id": "mine"}),
            await server.client.get("/nowhere", headers={**key, "X-Request-Id": "mine"}),
            await server.client.get("/v1/completions", headers={**key, "X-Request-Id": "mine"}),
            await server.client.get("/health", headers={"X-Request-Id": "mine"}),
        ]
        bad = await server.client.get("/health", headers={"X-Request-Id": "two words"})
        made = [(await server.client.get("/health")).headers["x-request-id"] for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 401, 404, 405, 200]
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}
    assert bad.status_code == 400 and len(bad.headers["x-request-id"]) == 32
    assert made[0] != made[1]


async def test_the_dashboard_asks_for_metrics_that_exist(serve: Any) -> None:
    async with serve() as server:
        await server.complete("a", max_tokens=2)
        values, text = await _metrics(server)
    existing = {labels[0] for labels in values} | set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    dashboard = json.loads((REPOSITORY / "deploy/grafana/quire.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    asked = {name for query in queries for name in re.findall(r"(?:quire:|http_|process_)\w+", query)}
    assert len(queries) > 40 and len(asked) > 25
    assert asked <= existing, asked - existing
    own = {labels[0] for labels in values if labels[0].startswith("quire:key_")}
    assert own <= asked | {"quire:key_cached_tokens_total"}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((REPOSITORY / "deploy/grafana/quire.json").read_text())
    assert dashboard["title"] and dashboard["schemaVersion"] >= 39
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
