"""Models from the hub: the real client against a server of our own on the loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMITS = {"main": "a" * 40, "v1": "b" * 40}

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

OPEN_ALL = """
import json, sys
from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.model import ModelConfig
from quire.errors import QuireError
answers = []
for options in json.load(sys.stdin):
    try:
        checkpoint = open_checkpoint(ModelConfig(**options))
        answers.append({"path": str(checkpoint.path), "format": checkpoint.format,
                        "layers": checkpoint.architecture.num_hidden_layers})
    except QuireError as error:
        answers.append({"error": type(error).__name__, "text": str(error)})
print(json.dumps(answers))
"""


def safetensors_file() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def gguf_file() -> bytes:
    from tempfile import TemporaryDirectory

    import gguf
    import numpy as np

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add, value in (
            (writer.add_block_count, 3),
            (writer.add_context_length, 64),
            (writer.add_embedding_length, 32),
            (writer.add_feed_forward_length, 32),
            (writer.add_head_count, 2),
            (writer.add_layer_norm_rms_eps, 1e-5),
        ):
            add(value)
        writer.add_tensor("token_embd.weight", np.zeros((8, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


@dataclass
class Hub:
    """What the server holds, and what it was asked for.

    Attributes:
        files: By (repository, commit).
        fetched: (path, Authorization header) of every file that was sent.
    """

    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    fetched: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def fill(self) -> None:
        folder = {
            "config.json": json.dumps(CONFIG).encode(),
            "tokenizer.json": b"{}",
            "tokenizer_config.json": b'{"add_bos_token": false}',
            "model.safetensors": safetensors_file(),
            "pytorch_model.bin": b"never",
            "README.md": b"never",
            "original/consolidated.safetensors": b"never",
            "onnx/model.safetensors": b"never",
        }
        self.files["org/model", COMMITS["main"]] = folder
        older = json.dumps(CONFIG | {"num_hidden_layers": 2}).encode()
        self.files["org/model", COMMITS["v1"]] = folder | {"config.json": older}
        content = gguf_file()
        self.files["org/gguf", COMMITS["main"]] = {
            "tiny-Q4_K_M.gguf": content,
            "tiny-Q8_0.gguf": content,
            "other.q8_0.gguf": content + bytes(32),
            "README.md": b"never",
        }


class Handler(BaseHTTPRequestHandler):
    """The routes of the hub that a download needs."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(("/api/models/org/gated", "/org/gated")):
            self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif path.startswith("/api/models/"):
            self.send_api(path.removeprefix("/api/models/"))
        else:
            self.send_file(*path[1:].split("/resolve/"))

    def send_file(self, repository: str, rest: str) -> None:
        revision, _, name = rest.partition("/")
        commit = COMMITS.get(revision, revision)
        content = self.hub.files.get((repository, commit), {}).get(name)
        if content is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.hub.fetched.append((f"{repository}/{name}", self.headers["Authorization"]))
        return self.send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit})

    def send_api(self, path: str) -> None:
        owner, name, kind, revision = [*path.split("/"), "revision", "main"][:4]
        repository, commit = f"{owner}/{name}", COMMITS.get(revision, revision)
        files = self.hub.files.get((repository, commit))
        if files is None:
            is_known = any(known == repository for known, _ in self.hub.files)
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if is_known else "RepoNotFound"})
        if kind == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.send(200, json.dumps(tree).encode())
        info = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return self.send(200, json.dumps(info).encode())

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    state.fill()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def open_all(hub: Hub, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Opens models in a process of its own, because the client reads its settings when it is imported."""

    def run(options: list[dict[str, Any]], **settings: str) -> list[dict[str, Any]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            **settings,
        }
        done = subprocess.run(
            [sys.executable, "-c", OPEN_ALL],
            input=json.dumps(options),
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    return run


def test_online_then_offline(hub: Hub, open_all: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    wanted = [
        {"model": "org/model"},
        {"model": "org/model", "revision": "v1"},
        {"model": "org/model", "revision": "b" * 40},
        {"model": "org/gguf:Q4_K_M"},
        {"model": "org/gguf:other.q8_0.gguf"},
    ]
    online = open_all(wanted, HF_TOKEN="hf_secret")
    assert [answer.get("layers") for answer in online] == [1, 2, 2, 3, 3], online
    assert [answer["format"] for answer in online] == ["safetensors"] * 3 + ["gguf"] * 2
    assert online[0]["path"].endswith("/snapshots/" + COMMITS["main"])
    assert online[3]["path"].endswith("/tiny-Q4_K_M.gguf")
    assert str(tmp_path / "home") in online[0]["path"]
    names = [name for name, _ in hub.fetched]
    needed = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    assert set(names) == {f"org/model/{name}" for name in needed} | {
        "org/gguf/tiny-Q4_K_M.gguf",
        "org/gguf/other.q8_0.gguf",
    }
    assert {token for _, token in hub.fetched} == {"Bearer hf_secret"}

    hub.fetched.clear()
    offline = open_all([*wanted, {"model": "org/absent"}, {"model": "org/gguf:Q8_0"}], HF_HUB_OFFLINE="1")
    assert offline[: len(wanted)] == online
    assert hub.fetched == []
    for answer in offline[len(wanted) :]:
        assert answer["error"] == "CheckpointNotFoundError"
        assert "HF_HUB_OFFLINE" in answer["text"]


def test_dummy_fetches_no_weights(hub: Hub, open_all: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    options = {"model": "org/model", "load_format": "dummy", "download_dir": str(folder), "hf_token": "hf_given"}
    (answer,) = open_all([options])
    assert answer["format"] == "dummy"
    assert answer["path"].startswith(str(folder))
    assert {name for name, _ in hub.fetched} == {
        "org/model/config.json",
        "org/model/tokenizer.json",
        "org/model/tokenizer_config.json",
    }
    assert {token for _, token in hub.fetched} == {"Bearer hf_given"}


def test_errors_say_what_would_help(open_all: Callable[..., list[dict[str, Any]]]) -> None:
    expected = {
        "org/absent": "neither a folder here nor a repository on the hub",
        "org/gated": "--hf-token",
        "org/gguf:Q2_K": "no GGUF file matches 'Q2_K'",
        "org/gguf:q8_0": "2 models",
        "org/gguf": "org/gguf:Q4_K_M",
    }
    answers = open_all([{"model": name} for name in expected] + [{"model": "org/model", "revision": "v9"}])
    for answer, text in zip(answers, [*expected.values(), "no revision 'v9'"], strict=True):
        assert answer["error"] == "CheckpointNotFoundError"
        assert text in answer["text"], answer
        assert "hint: " in answer["text"]


def test_a_hub_that_cannot_be_reached(open_all: Callable[..., list[dict[str, Any]]]) -> None:
    (answer,) = open_all([{"model": "org/model"}], HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="1")
    assert answer["error"] == "CheckpointNotFoundError"
    assert "cannot be reached" in answer["text"]
