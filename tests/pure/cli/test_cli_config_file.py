"""Options from a YAML file."""

from pathlib import Path

import pytest

from quire.entrypoints.cli.serve import COMMAND
from quire.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.yaml"


def test_keys_in_either_spelling(file: Path) -> None:
    file.write_text(
        "model: org/m\nmax-model-len: 4k\nmax_num_seqs: 8\napi-key: [a, b]\nserved_model_name: x\n"
        "enable-prefix-caching: false\ngpu-memory-utilization: 0.5\ndisable-chunked-prefill: false\n"
    )
    arguments = COMMAND.parse(["--config", str(file)])
    del arguments.values["config"]  # type: ignore[attr-defined]
    assert arguments.values == {
        "model": "org/m",
        "max_model_len": 4000,
        "max_num_seqs": 8,
        "api_key": ("a", "b"),
        "served_model_name": ("x",),
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.5,
        "enable_chunked_prefill": True,
    }


def test_the_command_line_wins(file: Path) -> None:
    file.write_text("model: from-file\nport: 1\nhost: there\n")
    values = COMMAND.parse(["from-line", "--port", "2", "--config", str(file)]).values
    assert (values["model"], values["port"], values["host"]) == ("from-line", 2, "there")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-modl-len: 4\n", "unknown key 'max-modl-len'"),
        ("config: other.yaml\n", "unknown key 'config'"),
        ("- a\n- b\n", "must hold a map of options, got a list"),
        ("a: [\n", "is not YAML"),
        ("port: [1, 2]\n", "--port must be an integer"),
        ("port: true\n", "--port must be an integer"),
        ("enable-prefix-caching: 7\n", "--enable-prefix-caching must be true or false, got 7"),
        ("tensor-parallel-size: 2\n", "not built in this version of quire: --tensor-parallel-size 2"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not YAML"),
    ],
)
def test_refused_files(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        COMMAND.parse(["--config", str(file)])
    assert message in caught.value.message


def test_an_unknown_key_names_its_neighbour(file: Path) -> None:
    file.write_text("max_modl_len: 4\n")
    with pytest.raises(ConfigError) as caught:
        COMMAND.parse(["--config", str(file)])
    assert caught.value.hint == "did you mean max-model-len?"


def test_what_asks_for_the_usual_passes(file: Path) -> None:
    file.write_text("tensor-parallel-size: 1\nenable-lora: false\nquantization_config: null\nswap_space: 0\n")
    assert COMMAND.parse(["--config", str(file)]).values == {"config": str(file)}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml: No such file"):
        COMMAND.parse(["--config", str(tmp_path / "absent.yaml")])


def test_an_empty_file_says_nothing(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert COMMAND.parse(["--config", str(file)]).values == {"config": str(file)}
