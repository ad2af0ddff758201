"""What this machine is, without importing torch."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import quire

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
INTERESTING_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def describe_machine() -> dict[str, Any]:
    """Versions, CPU, memory and GPUs; what cannot be found out is None."""
    from quire.worker.control_groups import memory_room
    from quire.worker.threads import num_usable_cpus

    fields = _first_processor(CPUINFO)
    features = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = _memory_bytes(MEMINFO)
    room = memory_room()
    return {
        "quire_version": quire.__version__,
        "python_version": platform.python_version(),
        "torch_version": installed_version("torch"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": fields.get("model name") or platform.processor() or None,
        "cpu_features": [name for name in INTERESTING_FEATURES if name in features],
        "num_cpus": os.cpu_count(),
        "num_usable_cpus": num_usable_cpus(),
        "memory_bytes": memory.get("MemTotal"),
        "available_memory_bytes": memory.get("MemAvailable"),
        "control_group_memory_bytes": room if room is not None and room < memory.get("MemTotal", 0) else None,
        "gpus": list_gpus(),
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package, None where it is not installed. Does not import it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def list_gpus() -> list[str]:
    """One line per NVIDIA GPU, as its driver's tool describes it; empty without the tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def _first_processor(path: Path) -> dict[str, str]:
    try:
        text = path.read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    parts = [line.replace(":", " ").split() for line in lines]
    return {words[0]: int(words[1]) * 1024 for words in parts if len(words) == 3 and words[2] == "kB"}
