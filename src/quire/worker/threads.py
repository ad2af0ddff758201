"""How many threads the model may use, and how they behave."""

import math
import os
from pathlib import Path

from quire.worker.control_groups import MEMBERSHIP, ROOT, cpu_quota


def num_usable_cpus(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """CPUs that affinity and control groups leave to this process, at least 1.

    A fraction is rounded up: threads that are throttled now and then do more than threads that are missing.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root, membership)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def prepare_torch() -> None:
    """Settings that torch's libraries read when they are loaded. No effect once torch is imported, nor where the user
    has decided.

    OpenMP's threads sleep where they wait for each other. A spinning thread holds the core that its peer needs as soon
    as anything else runs on the machine, an HTTP server for one, and a step then takes several times as long.

    MKL sums in the same order on every thread and at every address. Otherwise a sequence's numbers depend on which
    thread computes it, and so on how many others there are.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
