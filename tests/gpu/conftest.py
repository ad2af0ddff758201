"""What runs on a GPU. Skipped where torch sees none.

`QUIRE_GPU_TESTS_ON=cpu` rehearses those tests that need no GPU by their nature on the CPU, with fewer of everything.
"""

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, RequestOutput, SamplingParams
from quire.checkpoint.checkpoint import small_model_path
from quire.errors import CheckpointNotFoundError

DEVICE = os.environ.get("QUIRE_GPU_TESTS_ON", "cuda")
MARGIN = 1e-3
"""Two best logits nearer to each other than this may change places."""

TOLERANCE = 1e-3
"""Of a log-probability in float32."""

KV_CACHE_BYTES = 2**30
NUM_TOKENS = 64 if DEVICE == "cuda" else 12
NUM_PROMPTS = 40 if DEVICE == "cuda" else 8

_HERE = Path(__file__).parent

OPENINGS = (
    "The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n",
    "Water boils at", "1, 1, 2, 3, 5, 8,", "To be, or not to be,", "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to", "import numpy as np\n", "In 1969, humans first",
)  # fmt: skip
SUBJECTS = ("the history of bread", "how bridges carry weight", "a fox who learns to read", "prime numbers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, and skips them where there is no GPU."""
    mine = [item for item in items if _HERE in item.path.parents]
    skip = None
    if DEVICE == "cuda" and not torch.cuda.is_available():
        reason = "this build of torch knows no CUDA" if torch.version.cuda is None else "torch sees no GPU"
        skip = pytest.mark.skip(reason=reason)
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if skip is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> str:
    """Where the model runs: "cuda", or "cpu" in a rehearsal."""
    return DEVICE


@pytest.fixture
def real_gpu() -> None:
    """For tests that mean nothing without a GPU."""
    if DEVICE != "cuda":
        pytest.skip("a rehearsal on the CPU")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The small real model, a GGUF file."""
    try:
        return small_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))


EngineMaker = Callable[..., LLM]


def make_engine(model: Path | str, **options: Any) -> LLM:
    """An engine in float32 with a small KV cache, on the GPU unless `device` says otherwise."""
    defaults: dict[str, Any] = {
        "device": DEVICE,
        "dtype": "float32",
        "max_model_len": 1024,
        "use_tqdm_on_load": False,
    }
    if "num_gpu_blocks_override" not in options and "gpu_memory_utilization" not in options:
        defaults["kv_cache_memory_bytes"] = KV_CACHE_BYTES if DEVICE == "cuda" else 2**28
    return LLM(str(model), **{**defaults, **options})


def close_engine(llm: LLM) -> None:
    """Ends an engine and gives its memory back."""
    llm.shutdown()
    llm.__dict__.clear()
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def start_engine() -> Iterator[EngineMaker]:
    """make_engine(model, **options); all engines end with the test."""
    engines: list[LLM] = []

    def start(model: Path | str, **options: Any) -> LLM:
        engines.append(make_engine(model, **options))
        return engines[-1]

    yield start
    for engine in engines:
        close_engine(engine)


@pytest.fixture(scope="session")
def engine(model_path: Path) -> Iterator[LLM]:
    """The real model in float32, shared; tests leave it idle."""
    llm = make_engine(model_path)
    yield llm
    close_engine(llm)


@pytest.fixture(scope="session")
def cpu_engine(model_path: Path) -> Iterator[LLM]:
    """The same on the CPU."""
    llm = make_engine(model_path, device="cpu", threads=4, kv_cache_memory_bytes=2**28)
    yield llm
    close_engine(llm)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """40 prompts of 4 to about 200 tokens, some of which share beginnings."""
    prompts = list(OPENINGS)
    for number, subject in enumerate(SUBJECTS * 5):
        prompts.append(f"Write {number + 1} sentences about {subject}. " + "Be clear and kind. " * (number * 2))
    prompts += [f"{opening} {opening} Then number {index}:" for index, opening in enumerate(OPENINGS)]
    return prompts[:NUM_PROMPTS]


@pytest.fixture(scope="session")
def greedy() -> Callable[..., list[RequestOutput]]:
    """greedy(llm, prompts): the most likely continuations, with the log-probabilities of their tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    return lambda llm, prompts: llm.generate(prompts, params, use_tqdm=False)


class Reference:
    """Transformers on the same weights in float32, asked once per sequence."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def logits(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Logits [len(answer), vocabulary] at the positions that predict the answer, on the CPU."""
        key = (*prompt, -1, *answer)
        if key not in self._known:
            with torch.inference_mode():
                token_ids = torch.tensor([prompt + answer], device=self._model.device)
                self._known[key] = self._model(token_ids).logits[0, len(prompt) - 1 : -1].float().cpu()
        return self._known[key]

    def check(self, outputs: list[RequestOutput]) -> None:
        """The engine issue's rule: feeds the answers to the reference (teacher forcing). Wherever its two best tokens
        are further apart than `MARGIN`, ours must be its best; everywhere our log-probability must be its."""
        num_clear = num_tokens = 0
        for output in outputs:
            answer = output.outputs[0]
            assert answer.logprobs is not None
            logits = self.logits(output.prompt_token_ids, answer.token_ids)
            best = logits.topk(2, dim=-1)
            clear = best.values[:, 0] - best.values[:, 1] > MARGIN
            wrong = clear & (best.indices[:, 0] != torch.tensor(answer.token_ids))
            assert not wrong.any(), f"prompt {output.request_id}: first at {wrong.nonzero()[0].item()}"
            theirs = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
            ours = [entry[token_id].logprob for entry, token_id in zip(answer.logprobs, answer.token_ids, strict=True)]
            error = (torch.tensor(ours) - theirs).abs().max().item()
            assert error <= TOLERANCE, f"prompt {output.request_id}: log-probability off by {error}"
            num_clear += int(clear.sum())
            num_tokens += len(clear)
        assert num_clear > 0.9 * num_tokens

    def is_near_tie(self, prompt: list[int], answer: list[int]) -> bool:
        """Whether the last token of a greedy answer could as well have been another."""
        best = self.logits(prompt, answer)[-1].topk(2).values
        return bool(best[0] - best[1] <= MARGIN)


@pytest.fixture(scope="session")
def reference(model_path: Path) -> Reference:
    """Transformers on the small model, on the device."""
    transformers = pytest.importorskip("transformers")
    return Reference(load_reference(transformers, model_path).to(DEVICE))


def load_reference(transformers: Any, path: Path) -> torch.nn.Module:
    """Llama of Transformers from a GGUF file, expanded to float32 by the gguf package.

    `from_pretrained(gguf_file=...)` gives the same (test_small_model.py on the CPU uses it) but takes most of a minute.
    """
    import gguf
    import numpy as np

    from quire.checkpoint.checkpoint import open_checkpoint
    from quire.config.model import ModelConfig

    checkpoint = open_checkpoint(ModelConfig(model=str(path)))
    architecture = checkpoint.architecture
    config = transformers.LlamaConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
        max_position_embeddings=architecture.context_length,
        rms_norm_eps=architecture.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope.theta},
        tie_word_embeddings="output.weight" not in checkpoint.tensors,
    )
    file = np.memmap(path, mode="r")
    state = {}
    for name, entry in checkpoint.tensors.items():
        packed = file[entry.offset : entry.offset + entry.num_bytes]
        numbers = gguf.dequantize(packed, gguf.GGMLQuantizationType[entry.dtype]).reshape(entry.shape)
        for kind, num_heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if f".{kind}." in name:
                # GGUF has the rows of a head in pairs (first half, second half), Transformers one half after the other.
                pairs = numbers.reshape(num_heads, -1, 2, entry.shape[1])
                numbers = pairs.swapaxes(1, 2).reshape(entry.shape)
        state[_transformers_name(name)] = torch.from_numpy(np.array(numbers, dtype=np.float32))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    # What is no weight was made on the meta device; it depends on the config alone.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


_GGUF_PARTS = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def _transformers_name(name: str) -> str:
    in_layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if in_layer:
        return f"model.layers.{in_layer[1]}.{_GGUF_PARTS[in_layer[2]]}.weight"
    return f"{_GGUF_PARTS[name.removesuffix('.weight')]}.weight"


TINY_SIZES: dict[str, Any] = {
    "vocab_size": 1031,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


TinyModelMaker = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModelMaker:
    """tiny_model(model_type, edit=..., **config): a folder for engines (with the tokenizer of the small model, given as
    an option), and the model of Transformers that it was written from, in float32 on the device."""
    pytest.importorskip("transformers")

    def make(model_type: str, edit: Callable[[Any], None] | None = None, **overrides: Any) -> tuple[Path, Any]:
        reference = _make_tiny_reference(model_type, overrides)
        if edit is not None:
            with torch.no_grad():
                edit(reference)
        folder = tmp_path_factory.mktemp(model_type)
        _save_tiny_model(folder, reference)
        return folder, reference.to(DEVICE)

    return make


def _make_tiny_reference(model_type: str, overrides: dict[str, Any]) -> Any:
    """Weights are so large that attention is far from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**TINY_SIZES, **overrides})
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=2.0 / config.hidden_size**0.5)
    return model


def _save_tiny_model(folder: Path, reference: Any) -> None:
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(reference.config.to_dict(), default=str))
    tied = {"lm_head.weight"} if reference.config.tie_word_embeddings else set()
    state = {name: tensor.contiguous() for name, tensor in reference.state_dict().items() if name not in tied}
    save_file(state, folder / "model.safetensors")
