"""Help, dispatch, errors and exit codes; and that nothing heavy is loaded on the way."""

import io
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from quire import __version__
from quire.entrypoints.cli import main as main_module
from quire.entrypoints.cli.main import COMMANDS, main
from quire.entrypoints.http.auth import KeyRing
from quire.entrypoints.http.keys import KeyFile, show_digest
from quire.errors import EngineDeadError

HEAVY = ("torch", "fastapi", "uvicorn", "transformers", "httpx", "yaml", "numpy", "tokenizers", "huggingface_hub")


def show(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "--help")
    assert all(f"  {name} " in text for name in COMMANDS)
    assert show(capsys) == text
    assert "bench latency" in show(capsys, "bench", "--help")
    assert show(capsys, "--version") == f"quire {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    short = show(capsys, *name.split(), "--help")
    long = show(capsys, *name.split(), "--help=all")
    assert short.startswith(f"usage: quire {name}")
    # `keys` has no more to show.
    assert len(short) < len(long) or name.startswith("keys ")
    assert max(map(len, short.splitlines())) <= 120


def test_the_short_help_shows_basic_options_by_owner(capsys: pytest.CaptureFixture[str]) -> None:
    short = show(capsys, "serve", "-h")
    assert "\nserver:\n" in short
    assert "\ncache:\n" in short
    assert "--port N" in short
    assert "(default: 8000)" in short
    assert "--block-size" not in short
    assert "--block-size" in show(capsys, "serve", "--help=all")


def test_help_of_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "serve", "--help=scheduler")
    assert "--max-num-seqs" in text
    assert "--port" not in text


@pytest.mark.parametrize("word", ["--help=--max-num-seqs", "--help=max_num_seqs", "--help=num-seqs"])
def test_help_by_flag_or_word(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "serve", word)
    assert "--max-num-seqs" in text
    assert "--dtype" not in text


def test_help_finds_words_of_the_text_and_what_is_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--api-key" in show(capsys, "serve", "--help=bearer")
    assert "not built in quire" in show(capsys, "serve", "--help=tensor-parallel")
    assert "no option of `quire chat` mentions 'tensor'" in show(capsys, "chat", "--help=tensor")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["serve", "--port", "x"], "error: --port must be an integer, got 'x'", ""),
        (["serve", "--swap-space", "4"], "error: not built in this version of quire: --swap-space 4", "hint: "),
        (["bake"], "error: unknown command 'bake'", "hint: the commands are serve, chat"),
        (["run-batch"], "error: not built in this version of quire: quire run-batch", "hint: `quire generate"),
        (["bench", "sweep"], "error: not built in this version of quire: quire bench sweep", "hint: "),
        (["bench", "nothing"], "error: unknown command 'bench nothing'", "hint: "),
        (["generate", "--system-prompt", "x", "-p", "y"], "error: --system-prompt needs --chat", ""),
        (["info", "no-such-file.gguf"], "error: no-such-file.gguf", ""),
        (["bench", "throughput", "--output-json", "/no/such/folder/x"], "error: cannot write /no/such", ""),
        (["bench", "serve", "--dataset-name", "custom"], "error: dataset custom needs --dataset-path", ""),
    ],
)
def test_the_callers_errors(words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert hint in captured.err
    assert "Traceback" not in captured.err


def test_our_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(words: list[str]) -> int:
        raise EngineDeadError("the engine has ended", hint="see its log")

    monkeypatch.setattr(main_module, "_run", fail)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "error: the engine has ended\nhint: see its log\n"


def test_an_interrupt_is_not_a_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_run", interrupt)
    assert main(["serve"]) == 130
    assert capsys.readouterr().err == "\n"


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("quire", ""),
        ("quire.entrypoints.openai.api_server", "serve"),
        ("quire.benchmark_serving", "bench serve"),
    ],
)
def test_modules_that_can_be_run(
    module: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: quire {command}")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, io, contextlib\n"
        "from quire.entrypoints.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['--help']) == 0 and main(['serve', '--help=all']) == 0\n"
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "import sys; from quire.entrypoints.cli.main import main; sys.exit(main(['serve', '--help=all']))"
    process = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")


def test_a_new_key_is_let_in_by_its_entry(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["keys", "new", "alice"]) == 0
    key, entry = capsys.readouterr()
    (tmp_path / "keys.yaml").write_text(entry)
    ring = KeyRing(file=KeyFile(tmp_path / "keys.yaml"))
    account = ring.check(f"Bearer {key.strip()}")
    assert account is not None
    assert account.key.name == "alice"


def test_a_key_is_hashed_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert main(["keys", "hash"]) == 0
    assert capsys.readouterr().out.strip() == show_digest("secret")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["keys", "hash"]) == 2
    assert main(["keys", "hash", "secret"]) == 2, "never as an argument"
