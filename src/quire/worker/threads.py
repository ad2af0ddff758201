"""How many threads the model may use, and how they wait for each other."""

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


def let_threads_sleep() -> None:
    """Makes torch's threads sleep where they wait for each other, instead of spinning.

    A spinning thread holds the core that its peer needs as soon as anything else runs on the machine, an HTTP server
    for one, and a step then takes several times as long. Has no effect once torch is imported, nor where the user
    has decided (OMP_WAIT_POLICY).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
