"""For all tests: the environment that quire gives torch, before anything imports it; a collector of traces."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quire.worker.threads import prepare_torch

prepare_torch()

LONGEST_FIRST = ("cpu/parity/", "cpu/worker/test_model_runner.py", "e2e/")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the files, what takes longest comes first, so that none is left alone with it at the end.
    Apart from that the order is random."""
    if not hasattr(config, "workerinput"):
        return

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((index for index, start in enumerate(LONGEST_FIRST) if path.startswith(start)), len(LONGEST_FIRST))

    items.sort(key=rank)


class TraceCollector:
    """Takes spans over HTTP, as an OpenTelemetry collector does.

    Attributes:
        url: Where, without a path.
        paths: Of the requests that came.
        spans: As protobuf has them.
        services: Names of the services that sent them.
    """

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.paths: list[str] = []
        self.spans: list[Any] = []
        self.services: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                outer.paths.append(self.path)
                for resource in request.resource_spans:
                    names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    outer.services.add(names["service.name"])
                    outer.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    """A collector of traces, which keeps what it gets."""
    running = TraceCollector()
    yield running
    running.close()
