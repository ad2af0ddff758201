"""Memory of machines whose cores have memory near and far (NUMA nodes). Linux; elsewhere nothing is known or done."""

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

NODES = Path("/sys/devices/system/node")

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_MPOL_DEFAULT, _MPOL_INTERLEAVE = 0, 3
_MAX_NODES = 1024


def nodes_of(cpus: Iterable[int], root: Path = NODES) -> list[int]:
    """The nodes that these CPUs belong to, in order; empty where the system does not tell."""
    wanted, nodes = set(cpus), []
    for folder in root.glob("node[0-9]*"):
        try:
            own = parse_cpu_list((folder / "cpulist").read_text())
        except (OSError, ValueError):
            continue
        if wanted & own:
            nodes.append(int(folder.name.removeprefix("node")))
    return sorted(nodes)


def interleave_memory(nodes: Iterable[int]) -> bool:
    """Spreads what this thread and threads that it starts take from now on over several nodes, page by page.

    Every thread reads every weight: wherever it runs, some of them are far. Interleaved, all memory channels serve all
    threads. With no nodes the system decides again.

    Returns:
        Whether the system agreed.
    """
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return False
    mask = (ctypes.c_ulong * (_MAX_NODES // 64))()
    chosen = list(nodes)
    for node in chosen:
        mask[node // 64] |= 1 << node % 64
    policy, place = (_MPOL_INTERLEAVE, ctypes.byref(mask)) if chosen else (_MPOL_DEFAULT, None)
    size = ctypes.c_ulong(_MAX_NODES if chosen else 0)
    return bool(ctypes.CDLL(None).syscall(number, policy, place, size) == 0)


def parse_cpu_list(text: str) -> set[int]:
    """{0, 1, 2, 8} for "0-2,8".

    Raises:
        ValueError: It is not such a list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, dash, last = part.partition("-")
            cpus.update(range(int(first), int(last if dash else first) + 1))
    return cpus


def num_cores(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """How many cores these CPUs are: two threads of one core count once. All count where the system does not tell."""
    cores = set()
    for cpu in cpus:
        try:
            siblings = (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
            cores.add(min(parse_cpu_list(siblings), default=cpu))
        except (OSError, ValueError):
            cores.add(cpu)
    return len(cores)


def usable_cpus() -> set[int]:
    """The CPUs that affinity leaves to this process."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
